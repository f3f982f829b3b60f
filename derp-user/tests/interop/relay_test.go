// Package interop runs Tailscale's own clients against the relay that `interop.rs` has started.
//
// Each test is started by a Rust test of the same meaning, with a relay of its own.
package interop

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// patience is how long a test waits for something that should happen at once.
const patience = 30 * time.Second

// relay is the server under test as the environment describes it.
type relay struct {
	tls      net.TCPAddr
	http     string
	stunPort int
	pin      string
}

func theRelay(t *testing.T) relay {
	t.Helper()
	address, err := net.ResolveTCPAddr("tcp", os.Getenv("RELAY_TLS"))
	if err != nil || address.Port == 0 {
		t.Fatalf("RELAY_TLS is no address: %v", err)
	}
	stun, err := net.ResolveUDPAddr("udp", os.Getenv("RELAY_STUN"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(os.Getenv("RELAY_CERTIFICATE"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("RELAY_CERTIFICATE names no PEM file")
	}
	hash := sha256.Sum256(block.Bytes)
	return relay{
		tls:      *address,
		http:     os.Getenv("RELAY_HTTP"),
		stunPort: stun.Port,
		pin:      "sha256-raw:" + hex.EncodeToString(hash[:]),
	}
}

func (r relay) region(change func(*tailcfg.DERPNode)) *tailcfg.DERPRegion {
	node := &tailcfg.DERPNode{
		Name:     "900a",
		RegionID: 900,
		HostName: r.tls.IP.String(),
		CertName: r.pin,
		IPv4:     r.tls.IP.String(),
		IPv6:     "none",
		DERPPort: r.tls.Port,
		STUNPort: r.stunPort,
	}
	if change != nil {
		change(node)
	}
	return &tailcfg.DERPRegion{
		RegionID:   900,
		RegionCode: "test",
		RegionName: "Relay under test",
		Nodes:      []*tailcfg.DERPNode{node},
	}
}

func (r relay) derpMap() *tailcfg.DERPMap {
	region := r.region(nil)
	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{region.RegionID: region}}
}

// regionClient makes a client that knows the relay by the pin of its certificate.
func (r relay) regionClient(private key.NodePrivate) *derphttp.Client {
	region := func() *tailcfg.DERPRegion { return r.region(nil) }
	return derphttp.NewRegionClient(private, quiet, netmon.NewStatic(), region)
}

// urlClient makes a client that knows the relay by its URL and trusts the usual roots.
func (r relay) urlClient(t *testing.T, private key.NodePrivate) *derphttp.Client {
	t.Helper()
	url := fmt.Sprintf("https://%v/derp", &r.tls)
	client, err := derphttp.NewClient(private, url, quiet, netmon.NewStatic())
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// slowClient logs in by the whole HTTP exchange, which the library does on TLS 1.2 only.
func (r relay) slowClient(t *testing.T, private key.NodePrivate) *derp.Client {
	t.Helper()
	conn, err := tls.Dial("tcp", r.tls.String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	buffered := bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	request, err := http.NewRequest("GET", fmt.Sprintf("https://%v/derp", &r.tls), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Upgrade", "DERP")
	request.Header.Set("Connection", "Upgrade")
	if err := request.Write(buffered); err != nil {
		t.Fatal(err)
	}
	if err := buffered.Flush(); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(buffered.Reader, request)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade refused: %s", response.Status)
	}
	client, err := derp.NewClient(private, conn, buffered, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// connected makes a logged-in region client with a new key.
func (r relay) connected(t *testing.T) *derphttp.Client {
	t.Helper()
	return login(t, r.regionClient(key.NewNode()))
}

// login connects a client and waits for the relay's ServerInfo.
func login(t *testing.T, client *derphttp.Client) *derphttp.Client {
	t.Helper()
	t.Cleanup(func() { client.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := client.Connect(ctx); err != nil {
		t.Fatalf("connecting: %v", err)
	}
	receive[derp.ServerInfoMessage](t, client)
	return client
}

// receive waits for a message of one type; keepalives may come before it.
func receive[Message any](t *testing.T, client receiver) Message {
	t.Helper()
	for {
		message, err := recvWithin(client, patience)
		if err != nil {
			t.Fatalf("waiting for %T: %v", *new(Message), err)
		}
		switch message := message.(type) {
		case Message:
			return message
		case derp.KeepAliveMessage:
		default:
			t.Fatalf("got %T %+v, want %T", message, message, *new(Message))
		}
	}
}

type receiver interface {
	Recv() (derp.ReceivedMessage, error)
}

// recvWithin gives up, and leaves the reading goroutine behind, when nothing comes in time.
func recvWithin(client receiver, limit time.Duration) (derp.ReceivedMessage, error) {
	type result struct {
		message derp.ReceivedMessage
		err     error
	}
	results := make(chan result, 1)
	go func() {
		message, err := client.Recv()
		results <- result{message, err}
	}()
	select {
	case got := <-results:
		return got.message, got.err
	case <-time.After(limit):
		return nil, os.ErrDeadlineExceeded
	}
}

// exchange sends a packet each way and compares the contents.
func exchange(t *testing.T, a, b *derphttp.Client) {
	t.Helper()
	for _, way := range [][2]*derphttp.Client{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		want := []byte("from " + from.SelfPublicKey().String())
		if err := from.Send(to.SelfPublicKey(), want); err != nil {
			t.Fatal(err)
		}
		got := receive[derp.ReceivedPacket](t, to)
		if got.Source != from.SelfPublicKey() || !bytes.Equal(got.Data, want) {
			t.Fatalf("got %q from %v, want %q from %v", got.Data, got.Source, want,
				from.SelfPublicKey())
		}
	}
}

// waitForMetric waits until a sample of the relay's metrics page has a value.
func (r relay) waitForMetric(t *testing.T, name string, want float64) {
	t.Helper()
	var got float64
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if got = r.metric(t, name); got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s is %v, want %v", name, got, want)
}

func (r relay) metric(t *testing.T, name string) float64 {
	t.Helper()
	response, err := http.Get("http://" + r.http + "/debug/varz")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if text, found := strings.CutPrefix(strings.TrimSpace(line), name+" "); found {
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	return 0
}

func quiet(string, ...any) {}
