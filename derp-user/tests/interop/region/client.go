package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/types/key"
)

// Of a packet: the round, the numbers of its sender and its receiver, the sender's key; then filling.
const headLength = 4 + 1 + 1 + 32

// client is one client of the reference library, which finds another server of the region when its own
// one does not answer.
type client struct {
	region  *region
	number  int
	private key.NodePrivate
	public  key.NodePublic
	random  *rand.Rand

	home         int // server it shall prefer
	derp         *derphttp.Client
	node         int          // server it is connected to
	connection   int          // counts connections, over all of its region clients
	generation   int          // the library's count of them
	receivedFrom map[int]bool // whose packets came by this connection
	told         map[int]bool // who left, as this connection was told
}

func newClient(r *region, number int) *client {
	private := key.NewNode()
	return &client{
		region:  r,
		number:  number,
		private: private,
		public:  private.Public(),
		random:  rand.New(rand.NewPCG(r.config.Seed, uint64(number))),
		home:    nowhere,
		node:    nowhere,
	}
}

// wish has the client prefer another server, or leave. The caller has locked the region.
func (c *client) wish(home int) {
	c.home = home
	c.disconnected()
	if c.derp != nil {
		go c.derp.Close()
		c.derp = nil
	}
	if home != nowhere {
		region := c.region.derpRegion(home)
		c.derp = derphttp.NewRegionClient(c.private, quiet, netmon.NewStatic(),
			constant(region))
		go c.receive(c.derp)
	}
}

func constant[T any](value T) func() T { return func() T { return value } }

func quiet(string, ...any) {}

func (c *client) disconnected() {
	c.node = nowhere
	c.generation = 0
}

// flags are how its server describes it to watchers.
func (c *client) flags() derp.PeerPresentFlags {
	if c.node == c.home {
		return derp.PeerPresentIsRegular
	}
	return derp.PeerPresentNotIdeal
}

// run sends to everybody else, for ever.
func (c *client) run() {
	for {
		time.Sleep(time.Duration(150+c.random.IntN(100)) * time.Millisecond)
		c.region.mu.Lock()
		connection, round, connected := c.derp, c.region.round, c.node != nowhere
		c.region.mu.Unlock()
		if !connected || connection == nil {
			continue
		}
		for _, to := range c.random.Perm(len(c.region.clients)) {
			if to == c.number {
				continue
			}
			packet := c.packet(round, to)
			if connection.Send(c.region.clients[to].public, packet) != nil {
				// Whoever receives notices, too, and connects again.
				break
			}
		}
	}
}

func (c *client) packet(round uint32, to int) []byte {
	packet := binary.BigEndian.AppendUint32(nil, round)
	packet = append(packet, byte(c.number), byte(to))
	packet = c.public.AppendTo(packet)
	return append(packet, bytes.Repeat([]byte{byte(to)}, c.random.IntN(1400))...)
}

// receive reads until the connection is given up, whatever becomes of single connections.
func (c *client) receive(connection *derphttp.Client) {
	for {
		message, generation, err := connection.RecvDetail()
		c.region.mu.Lock()
		if c.derp != connection {
			c.region.mu.Unlock()
			return
		}
		if err != nil {
			c.disconnected()
		} else {
			c.take(message, generation)
		}
		c.region.mu.Unlock()
		if err != nil {
			time.Sleep(50 * time.Millisecond)
		}
	}
}

func (c *client) take(message derp.ReceivedMessage, generation int) {
	r := c.region
	if generation != c.generation {
		node, known := r.nodes[c.derp.ServerPublicKey()]
		if !known {
			r.fault("%d is on a server that nobody knows", c.number)
		}
		c.node, c.generation = node, generation
		c.connection++
		c.receivedFrom, c.told = make(map[int]bool), make(map[int]bool)
	}
	switch message := message.(type) {
	case derp.ReceivedPacket:
		c.takePacket(message)
	case derp.PeerGoneMessage:
		number, known := r.numbers[message.Peer]
		switch {
		case message.Reason == derp.PeerGoneReasonDisconnected && (!known || !c.receivedFrom[number]):
			r.fault("%d never had a packet from %v", c.number, message.Peer)
		case message.Reason == derp.PeerGoneReasonDisconnected:
			c.told[number] = true
		}
	case derp.PeerPresentMessage:
		r.fault("%d did not ask to watch", c.number)
	}
}

// takePacket checks that a packet is for this client, whole, and from whom it says.
func (c *client) takePacket(packet derp.ReceivedPacket) {
	r, data := c.region, packet.Data
	from, known := r.numbers[packet.Source]
	if !known || len(data) < headLength || int(data[4]) != from || int(data[5]) != c.number ||
		!bytes.Equal(data[6:headLength], packet.Source.AppendTo(nil)) ||
		len(bytes.TrimLeft(data[headLength:], string([]byte{byte(c.number)}))) > 0 {
		r.fault("%d got %x from %v", c.number, data, packet.Source)
		return
	}
	r.arrived++
	c.receivedFrom[from] = true
	pair := [2]int{from, c.number}
	r.heard[pair] = max(r.heard[pair], binary.BigEndian.Uint32(data))
}
