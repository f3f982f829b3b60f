package interop

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netcheck"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// A region client takes the fast start on TLS 1.3 and the HTTP exchange on TLS 1.2.
func TestRegionClient(t *testing.T) {
	relay := theRelay(t)
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			limited := func() *derphttp.Client {
				client := relay.regionClient(key.NewNode())
				client.TLSConfig = &tls.Config{MaxVersion: version}
				return login(t, client)
			}
			exchangeOver(t, version, limited(), limited())
		})
	}
}

func TestURLClient(t *testing.T) {
	relay := theRelay(t)
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			limited := func() *derphttp.Client {
				client := relay.urlClient(t, key.NewNode())
				client.TLSConfig = &tls.Config{MaxVersion: version}
				return login(t, client)
			}
			exchangeOver(t, version, limited(), limited())
		})
	}
}

func exchangeOver(t *testing.T, version uint16, a, b *derphttp.Client) {
	t.Helper()
	state, ok := a.TLSConnectionState()
	if !ok || state.Version != version {
		t.Fatalf("the connection is not %s", tls.VersionName(version))
	}
	if a.ServerPublicKey() != b.ServerPublicKey() || a.ServerPublicKey().IsZero() {
		t.Fatal("two connections saw different server keys")
	}
	exchange(t, a, b)
}

// The HTTP exchange on TLS 1.3, as clients without fast start do it.
func TestSlowStart(t *testing.T) {
	relay := theRelay(t)
	private := key.NewNode()
	slow := relay.slowClient(t, private)
	receive[derp.ServerInfoMessage](t, slow)
	fast := relay.connected(t)
	if slow.ServerPublicKey() != fast.ServerPublicKey() {
		t.Fatal("frame and certificate announce different server keys")
	}
	if err := fast.Send(private.Public(), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got := receive[derp.ReceivedPacket](t, slow); string(got.Data) != "hello" {
		t.Fatalf("got %q", got.Data)
	}
}

// The pin is what is checked: another one is refused, none at all needs a trusted certificate.
func TestPin(t *testing.T) {
	relay := theRelay(t)
	for name, pin := range map[string]string{
		"right": relay.pin,
		"wrong": "sha256-raw:" + strings.Repeat("ab", 32),
	} {
		t.Run(name, func(t *testing.T) {
			region := relay.region(func(node *tailcfg.DERPNode) { node.CertName = pin })
			client := derphttp.NewRegionClient(key.NewNode(), quiet, netmon.NewStatic(),
				func() *tailcfg.DERPRegion { return region })
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := client.Connect(ctx); (err == nil) != (name == "right") {
				t.Fatalf("connecting: %v", err)
			}
		})
	}
}

func TestPingPong(t *testing.T) {
	relay := theRelay(t)
	client := relay.connected(t)
	for count := range byte(20) {
		data := [8]byte{count, 1, 2, 3, 4, 5, 6, 7}
		if err := client.SendPing(data); err != nil {
			t.Fatal(err)
		}
		if got := receive[derp.PongMessage](t, client); got != derp.PongMessage(data) {
			t.Fatalf("got %v, want %v", got, data)
		}
	}
	relay.waitForMetric(t, "derp_sent_pong", 20)
}

func TestNotePreferred(t *testing.T) {
	relay := theRelay(t)
	client := relay.connected(t)
	client.NotePreferred(true)
	relay.waitForMetric(t, "derp_current_home_connections", 1)
	client.NotePreferred(false)
	relay.waitForMetric(t, "derp_current_home_connections", 0)

	home := relay.regionClient(key.NewNode())
	home.NotePreferred(true)
	login(t, home)
	relay.waitForMetric(t, "derp_current_home_connections", 1)
	home.Close()
	relay.waitForMetric(t, "derp_current_home_connections", 0)
}

func TestPeerGone(t *testing.T) {
	relay := theRelay(t)
	stays, leaves := relay.connected(t), relay.connected(t)
	exchange(t, stays, leaves)
	leaves.Close()
	gone := receive[derp.PeerGoneMessage](t, stays)
	want := derp.PeerGoneMessage{
		Peer: leaves.SelfPublicKey(), Reason: derp.PeerGoneReasonDisconnected,
	}
	if gone != want {
		t.Fatalf("got %+v, want %+v", gone, want)
	}
	disco := append([]byte("TS💬"), make([]byte, 100)...)
	if err := stays.Send(leaves.SelfPublicKey(), disco); err != nil {
		t.Fatal(err)
	}
	want.Reason = derp.PeerGoneReasonNotHere
	if gone := receive[derp.PeerGoneMessage](t, stays); gone != want {
		t.Fatalf("got %+v, want %+v", gone, want)
	}
}

// As when a client changes networks: the new connection of a key takes over from the old one.
func TestDuplicateConnections(t *testing.T) {
	relay := theRelay(t)
	private := key.NewNode()
	sender := relay.connected(t)
	older := login(t, relay.regionClient(private))
	newer := login(t, relay.regionClient(private))
	relay.waitForMetric(t, "derp_current_dup_client_conns", 2)
	exchange(t, sender, newer)
	if err := older.SendPing([8]byte{1}); err != nil {
		t.Fatal(err)
	}
	receive[derp.PongMessage](t, older)
	exchange(t, sender, older)
	older.Close()
	relay.waitForMetric(t, "derp_current_dup_client_conns", 0)
	exchange(t, sender, newer)
}

// The relay's keepalive arrives within the time a client would wait, and nothing else does.
func TestKeepAlive(t *testing.T) {
	relay := theRelay(t)
	client := relay.connected(t)
	start := time.Now()
	message, err := recvWithin(client, 100*time.Second)
	if _, ok := message.(derp.KeepAliveMessage); !ok {
		t.Fatalf("got %T, error %v", message, err)
	}
	if waited := time.Since(start); waited < 55*time.Second {
		t.Fatalf("after only %v", waited)
	}
	exchange(t, client, relay.connected(t))
}

// A client that was cut off, here for sending what only a mesh may, redials by itself.
func TestReconnect(t *testing.T) {
	relay := theRelay(t)
	client, other := relay.connected(t), relay.connected(t)
	stranger := key.NewNode().Public()
	if err := client.ForwardPacket(stranger, other.SelfPublicKey(), nil); err != nil {
		t.Fatal(err)
	}
	_, err := recvWithin(client, patience)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("not cut off: %v", err)
	}
	receive[derp.ServerInfoMessage](t, client)
	exchange(t, client, other)
}

// What every client does to choose its home: STUN, or HTTPS where UDP is blocked.
func TestNetcheck(t *testing.T) {
	relay := theRelay(t)
	for name, options := range map[string]*netcheck.GetReportOpts{
		"STUN":  {OnlySTUN: true},
		"HTTPS": {OnlyTCP443: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			client := &netcheck.Client{NetMon: netmon.NewStatic(), Logf: quiet}
			if err := client.Standalone(ctx, "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
			report, err := client.GetReport(ctx, relay.derpMap(), options)
			if err != nil {
				t.Fatal(err)
			}
			if report.RegionLatency[900] <= 0 || report.PreferredDERP != 900 {
				t.Fatalf("no latency: %+v", report)
			}
			if name == "STUN" && (!report.UDP || !report.IPv4) {
				t.Fatalf("no UDP: %+v", report)
			}
			fmt.Println(name, "latency", report.RegionLatency[900])
		})
	}
}
