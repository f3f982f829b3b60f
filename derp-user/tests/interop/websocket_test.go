package interop

import (
	"math/rand/v2"
	"testing"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/types/key"
)

// The client as it is in a browser, where it has nothing but WebSocket: on other systems it is built
// with the tag ts_debug_websockets, and uses it where the environment says so. It exchanges 1,000
// packets of every size each way with a client that speaks plain DERP.
func TestWebSocketClient(t *testing.T) {
	relay := theRelay(t)
	const knob = "TS_DEBUG_DERP_WS_CLIENT"
	plain := relay.connected(t)
	t.Setenv(knob, "true")
	browser := login(t, relay.urlClient(t, key.NewNode()))
	t.Setenv(knob, "false")
	relay.waitForMetric(t, "derp_websocket_accepts", 1)
	if browser.ServerPublicKey() != plain.ServerPublicKey() {
		t.Fatal("two connections saw different server keys")
	}
	random := rand.New(rand.NewPCG(2, 3))
	for count := range 1000 {
		size := sizes[count%len(sizes)]
		if count >= 2*len(sizes) {
			size = random.IntN(derp.MaxPacketSize + 1)
		}
		for _, way := range [][2]*derphttp.Client{{plain, browser}, {browser, plain}} {
			if err := deliver(random, way[0], way[1], size); err != nil {
				t.Fatal(err)
			}
		}
	}
	relay.waitForMetric(t, "derp_packets_sent", 2000)
	relay.waitForMetric(t, "derp_websocket_accepts", 1)
	browser.Close()
	gone := receive[derp.PeerGoneMessage](t, plain)
	if gone.Peer != browser.SelfPublicKey() {
		t.Fatalf("%v is gone", gone.Peer)
	}
}
