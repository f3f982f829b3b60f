// Relayvectors prints the disco messages of peer relays as Tailscale's own code writes them: what is in the box,
// and the whole packet from A to B. Its output is ../../../src/peer_relay/tests/vectors.txt.
package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"time"

	"go4.org/mem"
	"tailscale.com/disco"
	"tailscale.com/types/key"
)

func private(fill byte) key.DiscoPrivate {
	raw := bytes.Repeat([]byte{fill}, 32)
	raw[0] &= 0xf8
	raw[31] = raw[31]&0x7f | 0x40
	return key.DiscoPrivateFromRaw32(mem.B(raw))
}

func public(fill byte) key.DiscoPublic {
	return key.DiscoPublicFromRaw32(mem.B(bytes.Repeat([]byte{fill}, 32)))
}

func main() {
	a, b := private(1), private(2)
	common := disco.BindUDPRelayEndpointCommon{VNI: 0x123456, Generation: 0x01020304, RemoteKey: public(3)}
	copy(common.Challenge[:], bytes.Repeat([]byte{4}, 32))
	endpoint := disco.UDPRelayEndpoint{
		ServerDisco:         public(5),
		ClientDisco:         [2]key.DiscoPublic{public(6), public(7)},
		LamportID:           0x0102030405060708,
		VNI:                 0xfedcba,
		BindLifetime:        30 * time.Second,
		SteadyStateLifetime: 5 * time.Minute,
		AddrPorts: []netip.AddrPort{
			netip.MustParseAddrPort("192.0.2.1:40000"),
			netip.MustParseAddrPort("[2001:db8::1]:40001"),
		},
	}
	messages := []struct {
		name    string
		message disco.Message
	}{
		{"bind", &disco.BindUDPRelayEndpoint{BindUDPRelayEndpointCommon: common}},
		{"challenge", &disco.BindUDPRelayEndpointChallenge{BindUDPRelayEndpointCommon: common}},
		{"answer", &disco.BindUDPRelayEndpointAnswer{BindUDPRelayEndpointCommon: common}},
		{"via", &disco.CallMeMaybeVia{UDPRelayEndpoint: endpoint}},
		{"request", &disco.AllocateUDPRelayEndpointRequest{
			ClientDisco: [2]key.DiscoPublic{public(8), public(9)}, Generation: 0x0a0b0c0d}},
		{"response", &disco.AllocateUDPRelayEndpointResponse{Generation: 0x0e0f1011, UDPRelayEndpoint: endpoint}},
	}
	for _, it := range messages {
		message := it.message.AppendMarshal(nil)
		packet := a.Public().AppendTo([]byte(disco.Magic))
		packet = append(packet, a.Shared(b.Public()).Seal(message)...)
		fmt.Printf("%s %x %x\n", it.name, message, packet)
	}
}
