// Command fleet keeps clients of the reference library on one server, which talk to each other in pairs and
// connect again as Tailscale's own client does when their connection ends.
//
// `upgrade` starts it and says on standard input what to do, a line each. Every line is answered by one:
//
//	settle    waits until every client has heard from its partner since now; "ok MILLISECONDS"
//	report    "ok" and a JSON object: see report
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/backoff"
)

// patience is how long something may take that should happen at once, on a machine that may be busy.
const patience = 60 * time.Second

// interval is the time between two packets of one client.
const interval = 100 * time.Millisecond

// round stands in every packet: what is heard with the newest one was sent after the last "settle".
var round atomic.Uint64

// report is what has happened since the last one.
type report struct {
	Reconnected int    // clients that had to connect again
	SlowestMs   int64  // longest time that one of them had no session
	Refused     int    // attempts that nobody listened for
	Failed      int    // attempts that failed otherwise, after the end of a session
	Packets     uint64 // that have arrived
}

type client struct {
	derp    *derphttp.Client
	public  key.NodePublic
	partner *client
	heard   atomic.Uint64 // newest round of the partner

	mu   sync.Mutex
	lost time.Time // when the session ended, if there is none
	last report
}

func main() {
	address := flag.String("address", "", "address and port of the server")
	certificate := flag.String("certificate", "", "PEM file with the certificate that it shows")
	count := flag.Int("clients", 200, "number of clients, even")
	flag.Parse()
	log.SetFlags(0)
	region, err := regionOf(*address, *certificate)
	if err != nil {
		log.Fatal(err)
	}
	if *count < 2 || *count%2 != 0 {
		log.Fatalf("%d clients are no pairs", *count)
	}
	clients := make([]*client, *count)
	for number := range clients {
		clients[number] = newClient(region)
	}
	for number, client := range clients {
		client.partner = clients[number^1]
	}
	for _, client := range clients {
		go client.receive()
		go client.send()
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "settle":
			fmt.Println(settle(clients))
		case "report":
			fmt.Println(collect(clients))
		default:
			fmt.Printf("fault no command: %q\n", lines.Text())
		}
	}
}

// regionOf describes a server that is known by its certificate.
func regionOf(address, certificate string) (*tailcfg.DERPRegion, error) {
	server, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("-address: %w", err)
	}
	text, err := os.ReadFile(certificate)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM file", certificate)
	}
	hash := sha256.Sum256(block.Bytes)
	node := &tailcfg.DERPNode{
		Name:     "900a",
		RegionID: 900,
		HostName: server.Addr().String(),
		CertName: "sha256-raw:" + hex.EncodeToString(hash[:]),
		IPv4:     server.Addr().String(),
		IPv6:     "none",
		DERPPort: int(server.Port()),
	}
	return &tailcfg.DERPRegion{
		RegionID:   900,
		RegionCode: "test",
		RegionName: "Server that is upgraded",
		Nodes:      []*tailcfg.DERPNode{node},
	}, nil
}

func newClient(region *tailcfg.DERPRegion) *client {
	private := key.NewNode()
	return &client{
		derp: derphttp.NewRegionClient(private, func(string, ...any) {}, netmon.NewStatic(),
			func() *tailcfg.DERPRegion { return region }),
		public: private.Public(),
	}
}

// receive reads for ever. After an error, which may be that of an attempt to connect again, it waits as Tailscale's
// client does.
func (c *client) receive() {
	pause := backoff.NewBackoff("fleet", func(string, ...any) {}, 5*time.Second)
	for {
		message, err := c.derp.Recv()
		c.note(message, err)
		pause.BackOff(context.Background(), err)
		if packet, ok := message.(derp.ReceivedPacket); ok && err == nil {
			c.take(packet)
		}
	}
}

// note keeps account of the session.
func (c *client) note(message derp.ReceivedMessage, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		if _, ok := message.(derp.ServerInfoMessage); ok && !c.lost.IsZero() {
			c.last.Reconnected++
			c.last.SlowestMs = max(c.last.SlowestMs, time.Since(c.lost).Milliseconds())
			c.lost = time.Time{}
		}
		return
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		c.last.Refused++
	case !c.lost.IsZero():
		c.last.Failed++
	}
	if c.lost.IsZero() {
		c.lost = time.Now()
	}
}

func (c *client) take(packet derp.ReceivedPacket) {
	if packet.Source != c.partner.public || len(packet.Data) < 8 {
		log.Fatalf("%d bytes from %v, who is not the partner", len(packet.Data), packet.Source)
	}
	c.heard.Store(binary.BigEndian.Uint64(packet.Data))
	c.mu.Lock()
	c.last.Packets++
	c.mu.Unlock()
}

func (c *client) send() {
	for {
		time.Sleep(interval)
		packet := binary.BigEndian.AppendUint64(nil, round.Load())
		err := c.derp.Send(c.partner.public, append(packet, make([]byte, 200)...))
		// It may have tried to connect again. All else is the receiver's to deal with.
		if errors.Is(err, syscall.ECONNREFUSED) {
			c.note(nil, err)
		}
	}
}

func settle(clients []*client) string {
	begun, wanted := time.Now(), round.Add(1)
	for _, client := range clients {
		for client.heard.Load() != wanted {
			if time.Since(begun) > patience {
				return fmt.Sprintf("fault after %v a client has not heard from its partner", patience)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return fmt.Sprintf("ok %d", time.Since(begun).Milliseconds())
}

func collect(clients []*client) string {
	var sum report
	for _, client := range clients {
		client.mu.Lock()
		last := client.last
		client.last = report{}
		client.mu.Unlock()
		sum.Reconnected += min(last.Reconnected, 1)
		sum.SlowestMs = max(sum.SlowestMs, last.SlowestMs)
		sum.Refused += last.Refused
		sum.Failed += last.Failed
		sum.Packets += last.Packets
	}
	text, err := json.Marshal(sum)
	if err != nil {
		return "fault " + err.Error()
	}
	return "ok " + string(text)
}
