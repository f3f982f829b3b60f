package interop

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
)

// Sizes around everything that has a limit: a disco message, a network packet, a TLS record, and
// the largest packet a relay takes.
var sizes = []int{
	0, 1, 31, 32, 61, 62, 63, 1280, 1399, 1400, 1500, 4091, 16347, 16348, 16384, 16385, 32731,
	32768, 65499, 65504, 65535, 65536,
}

// 50 pairs exchange packets of every size at once, in both directions, and lose none: each side
// has one packet under way at a time.
func TestManyPairs(t *testing.T) {
	relay := theRelay(t)
	const pairs, rounds = 50, 3
	failures := make(chan error)
	for pair := range pairs {
		a, b := relay.connected(t), relay.connected(t)
		random := rand.New(rand.NewPCG(1, uint64(pair)))
		go func() { failures <- pingPongSizes(random, a, b, rounds) }()
	}
	for range pairs {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	fmt.Printf("%d packets delivered\n", int(relay.metric(t, "derp_packets_sent")))
}

func pingPongSizes(random *rand.Rand, a, b *derphttp.Client, rounds int) error {
	for range rounds {
		for _, index := range random.Perm(len(sizes)) {
			if err := deliver(random, a, b, sizes[index]); err != nil {
				return err
			}
			if err := deliver(random, b, a, random.IntN(derp.MaxPacketSize+1)); err != nil {
				return err
			}
		}
	}
	return nil
}

// deliver sends a random packet of a size and compares what arrives by its checksum.
func deliver(random *rand.Rand, from, to *derphttp.Client, size int) error {
	packet := make([]byte, size)
	for at := range packet {
		packet[at] = byte(random.Uint32())
	}
	if err := from.Send(to.SelfPublicKey(), packet); err != nil {
		return fmt.Errorf("sending %d bytes: %w", size, err)
	}
	for {
		message, err := recvWithin(to, patience)
		if err != nil {
			return fmt.Errorf("waiting for %d bytes: %w", size, err)
		}
		if _, ok := message.(derp.KeepAliveMessage); ok {
			continue
		}
		got, ok := message.(derp.ReceivedPacket)
		switch {
		case !ok:
			return fmt.Errorf("got %T for %d bytes", message, size)
		case got.Source != from.SelfPublicKey():
			return fmt.Errorf("%d bytes come from %v", size, got.Source)
		case sha256.Sum256(got.Data) != sha256.Sum256(packet):
			return fmt.Errorf("%d bytes arrived as other %d", size, len(got.Data))
		}
		return nil
	}
}

// A flood: much may be dropped, but what arrives is whole and in order, and nobody is cut off.
func TestBurst(t *testing.T) {
	relay := theRelay(t)
	const senders, packets = 4, 2000
	target, closing := relay.connected(t), relay.connected(t)
	floods, finished := make(chan error), make(chan error, 1)
	for number := range senders {
		sender := relay.connected(t)
		go func() { floods <- flood(sender, target, byte(number), packets) }()
	}
	go func() {
		var errs []error
		for range senders {
			errs = append(errs, <-floods)
		}
		errs = append(errs, closing.Send(target.SelfPublicKey(), endOfBurst))
		finished <- errors.Join(errs...)
	}()
	received, err := drain(target)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-finished; err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%d of %d packets delivered\n", received, senders*packets)
	exchange(t, target, relay.connected(t))
}

// endOfBurst is the last packet of all, so that nothing pushes it out of a queue.
var endOfBurst = []byte("end")

// flood sends numbered packets as fast as the connection takes them, and then asks the relay for
// a sign that it has handled them.
func flood(sender, target *derphttp.Client, number byte, packets uint32) error {
	for count := range packets {
		size := 100 + int(count%17)*90
		packet := bytes.Repeat([]byte{number}, size)
		binary.BigEndian.PutUint32(packet[1:], count)
		if err := sender.Send(target.SelfPublicKey(), packet); err != nil {
			return fmt.Errorf("flooding: %w", err)
		}
	}
	if err := sender.SendPing([8]byte{number}); err != nil {
		return err
	}
	_, err := recvWithin(sender, patience)
	return err
}

// drain reads until the end of the burst and checks every packet on the way.
func drain(target *derphttp.Client) (received int, err error) {
	last := make(map[byte]uint32)
	for {
		message, err := recvWithin(target, patience)
		if err != nil {
			return received, fmt.Errorf("after %d packets: %w", received, err)
		}
		packet, ok := message.(derp.ReceivedPacket)
		if !ok {
			continue
		}
		if bytes.Equal(packet.Data, endOfBurst) {
			return received, nil
		}
		number, count := packet.Data[0], binary.BigEndian.Uint32(packet.Data[1:])
		size := 100 + int(count%17)*90
		if len(packet.Data) != size || packet.Data[size-1] != number {
			return received, fmt.Errorf("packet %d of sender %d is damaged", count, number)
		}
		if before, seen := last[number]; seen && before >= count {
			return received, fmt.Errorf("sender %d: %d came after %d", number, count, before)
		}
		last[number] = count
		received++
	}
}
