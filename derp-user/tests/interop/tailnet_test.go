package interop

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go4.org/mem"
	"tailscale.com/disco"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
)

// awkward is a text that JSON has to escape.
const awkward = `<b> & "quotes" \ é 🦀 </b>`

// tailnetPatience is longer than a pause after refusals.
const tailnetPatience = 2 * patience

// tailnet is the reference test coordination server, with what the relay under test joins.
type tailnet struct {
	*testcontrol.Server
	http *http.Server

	mu      sync.Mutex
	conns   map[net.Conn]bool
	expired key.NodePublic
}

// startTailnet serves at the address that the relay was told.
func startTailnet(t *testing.T, r relay, authKey string) *tailnet {
	t.Helper()
	address := os.Getenv("RELAY_CONTROL")
	certificate, err := tls.LoadX509KeyPair(os.Getenv("RELAY_CONTROL_CERT"), os.Getenv("RELAY_CONTROL_KEY"))
	if err != nil {
		t.Fatal(err)
	}
	derpMap := r.derpMap()
	derpMap.Regions[900].RegionName = awkward
	derpMap.Regions[7] = &tailcfg.DERPRegion{RegionID: 7, RegionCode: "other", Nodes: []*tailcfg.DERPNode{
		{Name: "7a", RegionID: 7, HostName: "derp7.invalid"},
	}}
	n := &tailnet{
		Server: &testcontrol.Server{
			DERPMap:          derpMap,
			AllNodesSameUser: true,
			AllOnline:        true,
			PeerRelayGrants:  true,
			RequireAuthKey:   authKey,
			ExplicitBaseURL:  "https://" + address,
			Logf:             quiet,
		},
		conns: map[net.Conn]bool{},
	}
	n.HoldMapRequest = func(request *tailcfg.MapRequest) func() {
		n.renew(request.NodeKey)
		return nil
	}
	var listener net.Listener
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if listener, err = net.Listen("tcp", address); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	n.http = &http.Server{
		Handler: n.Server,
		// Hijacked connections, which are those that matter, are not tracked any further: they stay here.
		ConnState: func(conn net.Conn, state http.ConnState) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if state == http.StateClosed {
				delete(n.conns, conn)
			} else {
				n.conns[conn] = true
			}
		},
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		// HTTP/2 outside of Noise is not spoken.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	go n.http.ServeTLS(listener, "", "")
	t.Cleanup(n.stop)
	return n
}

// cut closes every connection.
func (n *tailnet) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for conn := range n.conns {
		conn.Close()
	}
	clear(n.conns)
}

// expire lets the key of a node have expired.
func (n *tailnet) expire(node *tailcfg.Node) {
	n.mu.Lock()
	n.expired = node.Key
	n.mu.Unlock()
	node.KeyExpiry = time.Now().Add(-time.Minute)
	n.UpdateNode(node)
}

// renew begins the new life of a key that has taken the place of an expired one: the server has copied its node, the end
// of its life included.
func (n *tailnet) renew(node key.NodePublic) {
	n.mu.Lock()
	isExpired := n.expired == node
	n.mu.Unlock()
	if it := n.Node(node); it != nil && !isExpired && !it.KeyExpiry.IsZero() {
		it.KeyExpiry = time.Time{}
		n.UpdateNode(it)
	}
}

func (n *tailnet) stop() {
	n.http.Close()
	n.cut()
}

// until waits for something to become true.
func until(t *testing.T, what string, isTrue func() bool) {
	t.Helper()
	for deadline := time.Now().Add(tailnetPatience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if isTrue() {
			return
		}
	}
	t.Fatalf("%s: not in time", what)
}

// joined waits until the relay's node has joined, published all it should, and follows.
func (n *tailnet) joined(t *testing.T, relay relayNode) *tailcfg.Node {
	t.Helper()
	until(t, "the relay publishes itself", func() bool {
		node := n.Node(relay.node)
		return node != nil && node.DiscoKey == relay.disco && node.HomeDERP == 900
	})
	ctx, cancel := context.WithTimeout(context.Background(), tailnetPatience)
	defer cancel()
	if err := n.AwaitNodeInMapRequest(ctx, relay.node); err != nil {
		t.Fatal(err)
	}
	return n.Node(relay.node)
}

// addPeer makes a client a node of the tailnet.
func (n *tailnet) addPeer(id tailcfg.NodeID, client *relayClient, addresses ...string) *tailcfg.Node {
	node := &tailcfg.Node{
		ID: id, StableID: tailcfg.StableNodeID(fmt.Sprintf("peer%d", id)), Name: awkward + ".ts.net.",
		User: 123, Key: client.node.Public(), DiscoKey: client.disco.Public(), Machine: key.NewMachine().Public(),
		MachineAuthorized: true, Cap: 142,
		Hostinfo: (&tailcfg.Hostinfo{Hostname: awkward, OS: awkward}).View(),
	}
	for _, address := range addresses {
		node.Addresses = append(node.Addresses, netip.MustParsePrefix(address))
	}
	node.AllowedIPs = node.Addresses
	n.UpdateNode(node)
	return node
}

// untilAnswered asks until there is an answer: the relay may not have heard of the client yet.
func (c *relayClient) untilAnswered(t *testing.T, relay relayNode) {
	t.Helper()
	pair := [2]key.DiscoPublic{c.disco.Public(), key.NewDisco().Public()}
	until(t, "an endpoint", func() bool { return c.ask(t, relay, pair, time.Second) != nil })
}

// isRefused says whether there is no answer.
func (c *relayClient) isRefused(t *testing.T, relay relayNode) bool {
	t.Helper()
	pair := [2]key.DiscoPublic{c.disco.Public(), key.NewDisco().Public()}
	return c.ask(t, relay, pair, time.Second) == nil
}

// TestTailnet has the relay's node join a tailnet that begins by refusing it, loses it, forgets it and has its key
// expire.
func TestTailnet(t *testing.T) {
	r := theRelay(t)
	relay := theRelayNode(t)
	n := startTailnet(t, r, "another key")
	var registrations atomic.Int64
	n.MaybeRateLimitRegister = func() (bool, string, string) {
		// The first one is sent away, to come back after a second.
		return registrations.Add(1) == 1, "1", "too many"
	}
	until(t, "the relay is refused", func() bool { return registrations.Load() >= 2 })
	if n.NumNodes() != 0 {
		t.Fatal("registered without a good key")
	}
	n.stop()
	n = startTailnet(t, r, "tskey-good")
	node := n.joined(t, relay)
	if name, peerRelay := node.Hostinfo.Hostname(), node.Hostinfo.PeerRelay(); name != "relay-under-test" || !peerRelay {
		t.Fatalf("unexpected host %q, %v", name, peerRelay)
	}
	if node.Cap < 121 || len(node.Endpoints) != 0 {
		t.Fatalf("unexpected version %d or endpoints %v", node.Cap, node.Endpoints)
	}

	to := &net.UDPAddr{IP: r.tls.IP, Port: 40000}
	both, ipv4, ipv6 := newRelayClient(t, r, to), newRelayClient(t, r, to), newRelayClient(t, r, to)
	stranger := newRelayClient(t, r, to)
	if !both.isRefused(t, relay) {
		t.Fatal("an endpoint for a node that is no peer yet")
	}
	n.addPeer(1001, both, "100.64.9.1/32", "fd7a:115c:a1e0::901/128")
	n.addPeer(1002, ipv4, "100.64.9.2/32")
	n.addPeer(1003, ipv6, "fd7a:115c:a1e0::903/128")
	for _, client := range []*relayClient{both, ipv4, ipv6} {
		client.untilAnswered(t, relay)
	}
	if !stranger.isRefused(t, relay) {
		t.Fatal("an endpoint for a node that is no peer")
	}
	if pair := [2]key.DiscoPublic{both.disco.Public(), relay.disco}; both.ask(t, relay, pair, time.Second) != nil {
		t.Fatal("an endpoint for the relay itself")
	}
	both.pingByDERP(t, relay)
	testPings(t, n, relay)

	t.Log("connections are lost")
	lost := n.Node(relay.node)
	lost.DiscoKey, lost.HomeDERP = key.DiscoPublic{}, 0
	n.UpdateNode(lost)
	n.cut()
	n.joined(t, relay)
	ipv4.untilAnswered(t, relay)

	t.Log("the server restarts and has forgotten everything")
	n.stop()
	if ipv4.isRefused(t, relay) {
		t.Fatal("what was known is forgotten while the server is away")
	}
	n = startTailnet(t, r, "tskey-good")
	n.joined(t, relay)
	n.addPeer(1002, ipv4, "100.64.9.2/32")
	ipv4.untilAnswered(t, relay)
	until(t, "a node that is no longer a peer is refused", func() bool { return both.isRefused(t, relay) })

	t.Log("the node key expires")
	expired := n.Node(relay.node)
	n.expire(expired)
	var renewed *tailcfg.Node
	until(t, "another node key", func() bool {
		nodes := n.AllNodes()
		at := slices.IndexFunc(nodes, func(it *tailcfg.Node) bool {
			return it.Machine == expired.Machine && it.Key != expired.Key
		})
		if at >= 0 {
			renewed = nodes[at]
		}
		return at >= 0
	})
	until(t, "the new key is saved", func() bool { return theRelayNode(t).node == renewed.Key })
	relay = theRelayNode(t)
	n.joined(t, relay)
	ipv4.untilAnswered(t, relay)

	testDeltas(t, n, relay, ipv4)
}

// pingByDERP sends a disco ping and waits for its pong.
func (c *relayClient) pingByDERP(t *testing.T, relay relayNode) {
	t.Helper()
	ping := &disco.Ping{TxID: [12]byte{1, 2, 3}, NodeKey: c.node.Public()}
	c.sendByDERP(t, relay, ping)
	for deadline := time.After(patience); ; {
		select {
		case packet := <-c.received:
			pong, ok := c.open(t, relay.disco, packet.Data).(*disco.Pong)
			if ok && (pong.TxID != ping.TxID || pong.Src != netip.AddrPortFrom(tailcfg.DerpMagicIPAddr, 900)) {
				t.Fatalf("unexpected pong %+v", pong)
			}
			if ok {
				return
			}
		case <-deadline:
			t.Fatal("no pong")
		}
	}
}

// testPings has the server ask whether the node is there, in three ways.
func testPings(t *testing.T, n *tailnet, relay relayNode) {
	t.Helper()
	pinged := make(chan string, 10)
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, request *http.Request) {
		var answer tailcfg.PingResponse
		json.NewDecoder(request.Body).Decode(&answer)
		pinged <- request.Method + " " + request.URL.Path + " " + string(answer.Type)
	}))
	defer web.Close()
	for _, ping := range []struct{ path, types, answer string }{
		{"/one", "", "HEAD /one "},
		{"/two", "disco", "POST /two disco"},
	} {
		request := &tailcfg.PingRequest{URL: web.URL + ping.path, Types: ping.types}
		until(t, "the node is connected", func() bool { return n.AddPingRequest(relay.node, request) })
		select {
		case answer := <-pinged:
			if answer != ping.answer {
				t.Fatalf("%q instead of %q", answer, ping.answer)
			}
		case <-time.After(patience):
			t.Fatalf("no answer to %q", ping.types)
		}
	}
	page, err := http.NewRequest("GET", "/echo", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	response, err := n.NodeRoundTripper(relay.node).RoundTrip(page.WithContext(ctx))
	if err != nil || response.StatusCode != http.StatusNotImplemented {
		t.Fatalf("unexpected answer to a request for a page: %v, %v", response, err)
	}
}

// testDeltas sends changes instead of whole maps. The server sends no maps of its own to the node after that.
func testDeltas(t *testing.T, n *tailnet, relay relayNode, client *relayClient) {
	t.Helper()
	send := func(message *tailcfg.MapResponse) {
		until(t, "the node is connected", func() bool { return n.AddRawMapResponse(relay.node, message) })
	}
	refused := func(what string) {
		t.Helper()
		until(t, what+" takes the permission away", func() bool { return client.isRefused(t, relay) })
	}
	peer := n.Node(client.node.Public())
	send(&tailcfg.MapResponse{PeersRemoved: []tailcfg.NodeID{peer.ID}})
	refused("removal")
	send(&tailcfg.MapResponse{PeersChanged: []*tailcfg.Node{peer}})
	client.untilAnswered(t, relay)
	other := key.DiscoPublicFromRaw32(mem.S(strings.Repeat("x", 32)))
	send(&tailcfg.MapResponse{PeersChangedPatch: []*tailcfg.PeerChange{{NodeID: peer.ID, DiscoKey: &other}}})
	refused("another disco key")
	own := client.disco.Public()
	send(&tailcfg.MapResponse{PeersChangedPatch: []*tailcfg.PeerChange{{NodeID: peer.ID, DiscoKey: &own}}})
	client.untilAnswered(t, relay)
	past := time.Now().Add(-time.Minute)
	send(&tailcfg.MapResponse{PeersChangedPatch: []*tailcfg.PeerChange{{NodeID: peer.ID, KeyExpiry: &past}}})
	refused("expiry")
	send(&tailcfg.MapResponse{PeersChanged: []*tailcfg.Node{peer}})
	client.untilAnswered(t, relay)
	send(&tailcfg.MapResponse{PacketFilters: map[string][]tailcfg.FilterRule{"*": nil}})
	refused("an empty filter")
	grant := tailcfg.CapGrant{
		Dsts:   n.Node(relay.node).Addresses,
		CapMap: tailcfg.PeerCapMap{tailcfg.PeerCapabilityRelay: nil},
	}
	rule := tailcfg.FilterRule{SrcIPs: []string{"100.64.9.0-100.64.9.7"}, CapGrant: []tailcfg.CapGrant{grant}}
	send(&tailcfg.MapResponse{PacketFilters: map[string][]tailcfg.FilterRule{"relays": {rule}}})
	client.untilAnswered(t, relay)
}
