package main

import (
	"context"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// watcher has the mesh key and is told who is connected to one server, as the reference's mesh is.
type watcher struct {
	region  *region
	node    int
	private key.NodePrivate

	present map[key.NodePublic]derp.PeerPresentFlags
}

func newWatcher(r *region, node int) *watcher {
	return &watcher{
		region:  r,
		node:    node,
		private: key.NewNode(),
		present: make(map[key.NodePublic]derp.PeerPresentFlags),
	}
}

func (w *watcher) run() {
	r := w.region
	region := &tailcfg.DERPRegion{RegionID: 900, Nodes: []*tailcfg.DERPNode{r.derpNode(w.node)}}
	client := derphttp.NewRegionClient(w.private, quiet, netmon.NewStatic(), constant(region))
	client.MeshKey = r.meshKey
	// Never ends by itself: the server's key is not the one that is to be ignored.
	client.RunWatchConnectionLoop(context.Background(), key.NodePublic{}, nil, w.add, w.remove, nil)
}

func (w *watcher) add(message derp.PeerPresentMessage) {
	w.region.mu.Lock()
	defer w.region.mu.Unlock()
	w.present[message.Key] = message.Flags
}

func (w *watcher) remove(message derp.PeerGoneMessage) {
	w.region.mu.Lock()
	defer w.region.mu.Unlock()
	if _, known := w.present[message.Peer]; !known {
		w.region.fault("node %d: %v left without having come", w.node, message.Peer)
	}
	delete(w.present, message.Peer)
}

// told returns the clients that are on the node as far as the watcher knows, and whether it is connected:
// it is told of itself, too.
func (w *watcher) told() (told map[int]derp.PeerPresentFlags, connected bool) {
	_, connected = w.present[w.private.Public()]
	told = make(map[int]derp.PeerPresentFlags)
	for public, flags := range w.present {
		if number, known := w.region.numbers[public]; known {
			told[number] = flags
		}
	}
	return told, connected
}
