// Command control serves the reference test coordination server with one given DERP map.
//
// `cargo xtask e2e` and tests run it so that real clients learn of the relay under test and of nothing else. With
// -peer-relay, every node may use every other one as a peer relay; nodes that do not register by themselves, such as
// a relay whose keys were given by hand, come from the file -nodes, a JSON list of tailcfg.Node.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

func main() {
	listen := flag.String("listen", "", "address to listen on, as ip:port")
	mapFile := flag.String("derp-map", "", "file with the DERP map in JSON")
	peerRelay := flag.Bool("peer-relay", false, "let every node use every other one as a peer relay")
	nodesFile := flag.String("nodes", "", "file with further nodes in JSON")
	flag.Parse()
	log.SetFlags(0)
	if err := serve(*listen, *mapFile, *peerRelay, *nodesFile); err != nil {
		log.Fatal(err)
	}
}

func serve(listen, mapFile string, peerRelay bool, nodesFile string) error {
	derpMap := new(tailcfg.DERPMap)
	if err := readJSON(mapFile, derpMap); err != nil {
		return err
	}
	var nodes []*tailcfg.Node
	if nodesFile != "" {
		if err := readJSON(nodesFile, &nodes); err != nil {
			return err
		}
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	control := &testcontrol.Server{
		DERPMap:          derpMap,
		AllNodesSameUser: true,
		AllOnline:        true,
		ExplicitBaseURL:  "http://" + listener.Addr().String(),
		PeerRelayGrants:  peerRelay,
		Logf:             func(string, ...any) {},
	}
	log.Printf("control server on %s", control.ExplicitBaseURL)
	go addNodes(control, nodes)
	return http.Serve(listener, control)
}

// addNodes adds nodes once another one has registered: the server has no place for them earlier.
func addNodes(control *testcontrol.Server, nodes []*tailcfg.Node) {
	for control.NumNodes() == 0 {
		time.Sleep(20 * time.Millisecond)
	}
	for _, node := range nodes {
		control.UpdateNode(node)
	}
}

func readJSON(file string, into any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("parsing %s: %w", file, err)
	}
	return nil
}
