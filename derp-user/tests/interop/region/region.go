package main

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"tailscale.com/derp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// nowhere stands for the server of a client that is not connected.
const nowhere = -1

// region is the model, and everything that runs. The fields of its clients and watchers are guarded too.
type region struct {
	config  configuration
	meshKey key.DERPMesh
	nodes   map[key.NodePublic]int // by the server's key
	numbers map[key.NodePublic]int // of clients, by their key

	mu       sync.Mutex
	clients  []*client
	watchers []*watcher
	round    uint32            // senders put it into their packets
	heard    map[[2]int]uint32 // last round that came from the first client to the second
	faults   []string          // what should not have come
	arrived  uint64            // packets
}

func newRegion(config configuration, meshKey key.DERPMesh) (*region, error) {
	r := &region{
		config:  config,
		meshKey: meshKey,
		nodes:   make(map[key.NodePublic]int),
		numbers: make(map[key.NodePublic]int),
		heard:   make(map[[2]int]uint32),
	}
	for number, node := range config.Nodes {
		var public key.NodePublic
		if err := public.UnmarshalText([]byte("nodekey:" + node.Key)); err != nil {
			return nil, fmt.Errorf("the key of node %d: %w", number, err)
		}
		r.nodes[public] = number
		r.watchers = append(r.watchers, newWatcher(r, number))
	}
	for number := range config.Clients {
		c := newClient(r, number)
		r.clients = append(r.clients, c)
		r.numbers[c.public] = number
	}
	return r, nil
}

func (r *region) start() {
	for _, watcher := range r.watchers {
		go watcher.run()
	}
	for _, client := range r.clients {
		go client.run()
	}
}

// derpRegion describes the region to a client that prefers the server number home: the others follow.
func (r *region) derpRegion(home int) *tailcfg.DERPRegion {
	nodes := make([]*tailcfg.DERPNode, 0, len(r.config.Nodes))
	for offset := range r.config.Nodes {
		nodes = append(nodes, r.derpNode((home+offset)%len(r.config.Nodes)))
	}
	return &tailcfg.DERPRegion{RegionID: 900, RegionCode: "test", RegionName: "Mixed", Nodes: nodes}
}

func (r *region) derpNode(number int) *tailcfg.DERPNode {
	node := r.config.Nodes[number]
	return &tailcfg.DERPNode{
		Name:     fmt.Sprintf("900%c", 'a'+number),
		RegionID: 900,
		HostName: node.Address,
		IPv4:     node.Address,
		IPv6:     "none",
		DERPPort: node.Port,
	}
}

func (r *region) fault(format string, values ...any) {
	r.faults = append(r.faults, fmt.Sprintf(format, values...))
}

func (r *region) packets() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.arrived
}

func (r *region) client(number int) (*client, error) {
	if number >= len(r.clients) {
		return nil, fmt.Errorf("no client %d", number)
	}
	return r.clients[number], nil
}

func (r *region) home(number, node int) error {
	c, err := r.client(number)
	if err != nil {
		return err
	}
	if node >= len(r.config.Nodes) {
		return fmt.Errorf("no node %d", node)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c.wish(node)
	return nil
}

// leave has a client leave the region: everybody who had packets from it must be told.
func (r *region) leave(number int) (string, error) {
	leaving, err := r.client(number)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	leaving.wish(nowhere)
	waiting := make(map[*client]int) // and the connection that has to hear of it
	for _, c := range r.clients {
		if c != leaving && c.receivedFrom[number] && !c.told[number] {
			waiting[c] = c.connection
		}
	}
	r.mu.Unlock()
	count := len(waiting)
	return fmt.Sprint(count), r.waitUntil(func() error {
		maps.DeleteFunc(waiting, func(c *client, connection int) bool {
			return c.connection != connection || c.told[number]
		})
		for c := range waiting {
			return fmt.Errorf("%d was not told that %d left", c.number, number)
		}
		return nil
	})
}

// settle waits until every pair has heard of each other since now, and watchers know who is where.
func (r *region) settle(up []int) (string, error) {
	r.mu.Lock()
	r.round++
	r.mu.Unlock()
	begun := time.Now()
	err := r.waitUntil(func() error { return r.disorder(up) })
	return fmt.Sprint(time.Since(begun).Milliseconds()), err
}

// waitUntil looks again and again whether there is still something wrong, under the lock.
func (r *region) waitUntil(wrong func() error) error {
	look := func() (err error, faults []string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return wrong(), r.faults
	}
	for deadline := time.Now().Add(settlesWithin); ; time.Sleep(20 * time.Millisecond) {
		err, faults := look()
		switch {
		case len(faults) > 0:
			return fmt.Errorf("%q", faults)
		case err == nil:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("after %v %w", settlesWithin, err)
		}
	}
}

// disorder is what is not in order yet.
func (r *region) disorder(up []int) error {
	present := make([]map[int]derp.PeerPresentFlags, len(r.config.Nodes))
	for node := range present {
		present[node] = make(map[int]derp.PeerPresentFlags)
	}
	for _, c := range r.clients {
		if c.node == nowhere || !slices.Contains(up, c.node) {
			return fmt.Errorf("client %d is on node %d", c.number, c.node)
		}
		present[c.node][c.number] = c.flags()
	}
	for _, from := range r.clients {
		for _, to := range r.clients {
			if from != to && r.heard[[2]int{from.number, to.number}] != r.round {
				return fmt.Errorf("%d on %d does not reach %d on %d",
					from.number, from.node, to.number, to.node)
			}
		}
	}
	for _, node := range up {
		told, connected := r.watchers[node].told()
		if !connected || !maps.Equal(told, present[node]) {
			return fmt.Errorf("the watcher of node %d knows %v, not %v", node, told, present[node])
		}
	}
	return nil
}
