// Relayoracle runs Tailscale's own peer relay server on a loopback port, its argument, for comparison with ours.
// A line asks, a line answers:
//
//	allocate HEX HEX  the endpoint of two disco keys: "SERVER VNI LAMPORT BIND STEADY", the last two its lifetimes in
//	                  nanoseconds, or "refused"
//	forget            no address is known any more: "ok"
//	bound VNI         the addresses that an endpoint's clients are bound to, by key, "-" for none
package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"log"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"go4.org/mem"
	"tailscale.com/net/udprelay"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
	"tailscale.com/types/views"
	"tailscale.com/util/usermetric"
)

func main() {
	port, err := strconv.ParseUint(os.Args[1], 10, 16)
	if err != nil {
		log.Fatal(err)
	}
	server, err := udprelay.NewServer(logger.Discard, uint16(port), true, new(usermetric.Registry), nil)
	if err != nil {
		log.Fatal(err)
	}
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))
	server.SetStaticAddrPorts(views.SliceOf([]netip.AddrPort{address}))
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(answer(server, strings.Fields(lines.Text())))
	}
}

func answer(server *udprelay.Server, words []string) string {
	switch words[0] {
	case "allocate":
		endpoint, err := server.AllocateEndpoint(public(words[1]), public(words[2]))
		if err != nil {
			return "refused"
		}
		return fmt.Sprintf("%x %d %d %d %d", endpoint.ServerDisco.AppendTo(nil), endpoint.VNI, endpoint.LamportID,
			endpoint.BindLifetime.Nanoseconds(), endpoint.SteadyStateLifetime.Nanoseconds())
	case "forget":
		server.SetStaticAddrPorts(views.Slice[netip.AddrPort]{})
		return "ok"
	case "bound":
		for _, session := range server.GetSessions() {
			if fmt.Sprint(session.VNI) == words[1] {
				return text(session.Client1.Endpoint) + " " + text(session.Client2.Endpoint)
			}
		}
	}
	return "unknown"
}

func text(address netip.AddrPort) string {
	if !address.IsValid() {
		return "-"
	}
	return address.String()
}

func public(digits string) key.DiscoPublic {
	raw, err := hex.DecodeString(digits)
	if err != nil || len(raw) != 32 {
		log.Fatalf("no key: %q", digits)
	}
	return key.DiscoPublicFromRaw32(mem.B(raw))
}
