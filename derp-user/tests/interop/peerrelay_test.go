package interop

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/disco"
	"tailscale.com/net/packet"
	"tailscale.com/types/key"
)

// relayNode is what clients know of the peer relay: its node's public keys.
type relayNode struct {
	node  key.NodePublic
	disco key.DiscoPublic
}

// theRelayNode reads the keys of the peer relay's node from its key file.
func theRelayNode(t *testing.T) relayNode {
	t.Helper()
	text, err := os.ReadFile(os.Getenv("RELAY_PEER_KEYS"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ NodeKey, DiscoKey string }
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var node key.NodePrivate
	if err := node.UnmarshalText([]byte(file.NodeKey)); err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(strings.TrimPrefix(file.DiscoKey, "privkey:"))
	if err != nil || len(raw) != 32 {
		t.Fatalf("no disco key: %v", err)
	}
	return relayNode{node.Public(), key.DiscoPrivateFromRaw32(mem.B(raw)).Public()}
}

// relayClient is a client of a peer relay: a node that can be reached by DERP, and its UDP socket.
type relayClient struct {
	node       key.NodePrivate
	disco      key.DiscoPrivate
	derp       *derphttp.Client
	udp        *net.UDPConn
	generation uint32
	// requests counts what was asked by DERP.
	requests uint32
	// received are packets of any sender that came by DERP.
	received chan derp.ReceivedPacket
}

func newRelayClient(t *testing.T, r relay, to *net.UDPAddr) *relayClient {
	t.Helper()
	client := &relayClient{node: key.NewNode(), disco: key.NewDisco(), received: make(chan derp.ReceivedPacket, 100)}
	client.derp = r.regionClient(client.node)
	t.Cleanup(func() { client.derp.Close() })
	go func() {
		for {
			message, err := client.derp.Recv()
			if err != nil {
				return
			}
			if packet, ok := message.(derp.ReceivedPacket); ok {
				packet.Data = bytes.Clone(packet.Data)
				client.received <- packet
			}
		}
	}()
	client.move(t, to)
	return client
}

// move has the client send from another port from now on.
func (c *relayClient) move(t *testing.T, to *net.UDPAddr) {
	t.Helper()
	udp, err := net.DialUDP("udp", nil, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	c.udp = udp
}

// ask requests the endpoint of c and other by DERP; nil if nothing comes back in time.
func (c *relayClient) ask(t *testing.T, relay relayNode, clients [2]key.DiscoPublic, patience time.Duration) *disco.AllocateUDPRelayEndpointResponse {
	t.Helper()
	c.requests++
	request := &disco.AllocateUDPRelayEndpointRequest{ClientDisco: clients, Generation: c.requests}
	c.sendByDERP(t, relay, request)
	for deadline := time.After(patience); ; {
		select {
		case packet := <-c.received:
			if packet.Source != relay.node {
				continue
			}
			message := c.open(t, relay.disco, packet.Data)
			response, ok := message.(*disco.AllocateUDPRelayEndpointResponse)
			if !ok || response.Generation > c.requests {
				t.Fatalf("unexpected answer %T", message)
			}
			// The answer to an earlier request may be late.
			if response.Generation == c.requests {
				return response
			}
		case <-deadline:
			return nil
		}
	}
}

// sendByDERP sends a disco message to the relay's node.
func (c *relayClient) sendByDERP(t *testing.T, relay relayNode, message disco.Message) {
	t.Helper()
	sealed := c.disco.Shared(relay.disco).Seal(message.AppendMarshal(nil))
	packet := append(c.disco.Public().AppendTo([]byte(disco.Magic)), sealed...)
	if err := c.derp.Send(relay.node, packet); err != nil {
		t.Fatal(err)
	}
}

func (c *relayClient) open(t *testing.T, sender key.DiscoPublic, message []byte) disco.Message {
	t.Helper()
	source, ok := disco.Source(message)
	if !ok || key.DiscoPublicFromRaw32(mem.B(source)) != sender {
		t.Fatal("not from the relay")
	}
	text, ok := c.disco.Shared(sender).Open(message[len(disco.Magic)+32:])
	if !ok {
		t.Fatal("cannot be opened")
	}
	opened, err := disco.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

func geneve(t *testing.T, vni uint32, control bool) []byte {
	t.Helper()
	header := packet.GeneveHeader{Control: control, Protocol: packet.GeneveProtocolWireGuard}
	if control {
		header.Protocol = packet.GeneveProtocolDisco
	}
	header.VNI.Set(vni)
	bytes := make([]byte, packet.GeneveFixedHeaderLength)
	if err := header.Encode(bytes); err != nil {
		t.Fatal(err)
	}
	return bytes
}

func (c *relayClient) receive(t *testing.T) []byte {
	t.Helper()
	c.udp.SetReadDeadline(time.Now().Add(patience))
	buffer := make([]byte, 1<<16)
	n, err := c.udp.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return buffer[:n]
}

// bind goes through the handshake for this client's end.
func (c *relayClient) bind(t *testing.T, endpoint disco.UDPRelayEndpoint, other *relayClient) {
	t.Helper()
	c.generation++
	common := disco.BindUDPRelayEndpointCommon{
		VNI: endpoint.VNI, Generation: c.generation, RemoteKey: other.disco.Public(),
	}
	send := func(message disco.Message) {
		sealed := c.disco.Shared(endpoint.ServerDisco).Seal(message.AppendMarshal(nil))
		whole := append(geneve(t, endpoint.VNI, true), disco.Magic...)
		whole = append(c.disco.Public().AppendTo(whole), sealed...)
		if _, err := c.udp.Write(whole); err != nil {
			t.Fatal(err)
		}
	}
	send(&disco.BindUDPRelayEndpoint{BindUDPRelayEndpointCommon: common})
	answer := c.receive(t)
	header := geneve(t, endpoint.VNI, true)
	if !bytes.HasPrefix(answer, header) {
		t.Fatalf("no control packet: %x", answer)
	}
	challenge, ok := c.open(t, endpoint.ServerDisco, answer[len(header):]).(*disco.BindUDPRelayEndpointChallenge)
	if !ok || challenge.VNI != common.VNI || challenge.Generation != common.Generation || challenge.RemoteKey != common.RemoteKey {
		t.Fatalf("unexpected challenge %+v", challenge)
	}
	send(&disco.BindUDPRelayEndpointAnswer{BindUDPRelayEndpointCommon: challenge.BindUDPRelayEndpointCommon})
}

// say has c send a packet until other receives it: the answer to a challenge is not acknowledged.
func (c *relayClient) say(t *testing.T, vni uint32, other *relayClient, text string) {
	t.Helper()
	whole := append(geneve(t, vni, false), text...)
	deadline := time.Now().Add(patience)
	buffer := make([]byte, 1<<16)
	for time.Now().Before(deadline) {
		if _, err := c.udp.Write(whole); err != nil {
			t.Fatal(err)
		}
		other.udp.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := other.udp.Read(buffer); err == nil && bytes.Equal(buffer[:n], whole) {
			return
		}
	}
	t.Fatalf("%q does not arrive", text)
}

// TestPeerRelay asks for an endpoint by DERP, binds both ends, and sends packets both ways, also after each end has
// moved.
func TestPeerRelay(t *testing.T) {
	r := theRelay(t)
	node := theRelayNode(t)
	to := &net.UDPAddr{IP: r.tls.IP, Port: 40000}
	a, b := newRelayClient(t, r, to), newRelayClient(t, r, to)
	pair := [2]key.DiscoPublic{a.disco.Public(), b.disco.Public()}
	response := a.ask(t, node, pair, patience)
	if response == nil {
		t.Fatal("no endpoint")
	}
	endpoint := response.UDPRelayEndpoint
	sorted := key.NewSortedPairOfDiscoPublic(pair[0], pair[1]).Get()
	if endpoint.ClientDisco != sorted || endpoint.LamportID != 1 || endpoint.VNI == 0 ||
		endpoint.BindLifetime != 30*time.Second || endpoint.SteadyStateLifetime != 5*time.Minute {
		t.Fatalf("unexpected endpoint %+v", endpoint)
	}
	if endpoint.AddrPorts[0] != netip.MustParseAddrPort("192.0.2.1:40000") {
		t.Fatalf("unexpected addresses %v", endpoint.AddrPorts)
	}
	again := b.ask(t, node, [2]key.DiscoPublic{pair[1], pair[0]}, patience)
	if again == nil || again.VNI != endpoint.VNI || again.LamportID != endpoint.LamportID {
		t.Fatalf("not the same endpoint: %+v", again)
	}

	a.bind(t, endpoint, b)
	b.bind(t, endpoint, a)
	a.say(t, endpoint.VNI, b, "from A")
	b.say(t, endpoint.VNI, a, "from B")
	a.move(t, to)
	a.bind(t, endpoint, b)
	a.say(t, endpoint.VNI, b, "from A, moved")
	b.say(t, endpoint.VNI, a, "to A, moved")
	b.move(t, to)
	b.bind(t, endpoint, a)
	b.say(t, endpoint.VNI, a, "from B, moved")
	a.say(t, endpoint.VNI, b, "to B, moved")

	stranger := newRelayClient(t, r, to)
	if answer := stranger.ask(t, node, pair, 500*time.Millisecond); answer != nil {
		t.Fatalf("an endpoint for others: %+v", answer)
	}
}
