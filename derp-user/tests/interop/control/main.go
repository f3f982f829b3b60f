// Command control serves the reference test coordination server with one given DERP map.
//
// `cargo xtask e2e` and tests run it so that real clients learn of the relay under test and of nothing else.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

func main() {
	listen := flag.String("listen", "", "address to listen on, as ip:port")
	mapFile := flag.String("derp-map", "", "file with the DERP map in JSON")
	peerRelay := flag.Bool("peer-relay", false, "let every node use every other as a peer relay")
	flag.Parse()
	log.SetFlags(0)
	if err := serve(*listen, *mapFile, *peerRelay); err != nil {
		log.Fatal(err)
	}
}

func serve(listen, mapFile string, peerRelay bool) error {
	text, err := os.ReadFile(mapFile)
	if err != nil {
		return fmt.Errorf("reading the DERP map: %w", err)
	}
	derpMap := new(tailcfg.DERPMap)
	if err := json.Unmarshal(text, derpMap); err != nil {
		return fmt.Errorf("parsing the DERP map %s: %w", mapFile, err)
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	control := &testcontrol.Server{
		DERPMap:          derpMap,
		AllNodesSameUser: true,
		AllOnline:        true,
		PeerRelayGrants:  peerRelay,
		ExplicitBaseURL:  "http://" + listener.Addr().String(),
		Logf:             func(string, ...any) {},
	}
	log.Printf("control server on %s", control.ExplicitBaseURL)
	return http.Serve(listener, control)
}
