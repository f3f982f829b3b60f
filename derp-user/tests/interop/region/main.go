// Command region runs clients of the reference library on the servers of one region, and checks what they
// receive and what watchers are told against a model.
//
// `mesh_region` starts it, kills and restarts the servers, and says on standard input what to do, a line
// each. Every line is answered by one that begins with "ok" or with "fault".
//
//	home CLIENT NODE    have a client prefer a server, its connection made anew
//	leave CLIENT        have a client disconnect, and wait until those are told who must be
//	settle NODE...      wait until everything is in order with these servers up
//	packets             how many packets have arrived
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"tailscale.com/types/key"
)

// settlesWithin is how soon after a change everything must be in order again.
const settlesWithin = 10 * time.Second

// configuration is what the test writes into a file.
type configuration struct {
	Clients int
	MeshKey string
	Seed    uint64
	Nodes   []struct {
		Address string // IP address, which the certificate is made out to
		Port    int
		Key     string // of the server, 64 hex digits
	}
}

func main() {
	file := flag.String("config", "", "file with the region in JSON")
	flag.Parse()
	log.SetFlags(0)
	region, err := load(*file)
	if err != nil {
		log.Fatal(err)
	}
	region.start()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		answer, err := region.obey(strings.Fields(lines.Text()))
		if err != nil {
			answer = "fault " + err.Error()
		} else {
			answer = strings.TrimSpace("ok " + answer)
		}
		fmt.Println(answer)
	}
}

func load(file string) (*region, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var config configuration
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("parsing %s: %w", file, err)
	}
	meshKey, err := key.ParseDERPMesh(config.MeshKey)
	if err != nil {
		return nil, err
	}
	return newRegion(config, meshKey)
}

func (r *region) obey(words []string) (string, error) {
	if len(words) == 0 {
		return "", fmt.Errorf("an empty line")
	}
	numbers := make([]int, 0, len(words)-1)
	for _, word := range words[1:] {
		number, err := strconv.Atoi(word)
		if err != nil || number < 0 {
			return "", fmt.Errorf("%q is not the number of anything", word)
		}
		numbers = append(numbers, number)
	}
	switch {
	case words[0] == "home" && len(numbers) == 2:
		return "", r.home(numbers[0], numbers[1])
	case words[0] == "leave" && len(numbers) == 1:
		return r.leave(numbers[0])
	case words[0] == "settle":
		return r.settle(numbers)
	case words[0] == "packets" && len(numbers) == 0:
		return strconv.FormatUint(r.packets(), 10), nil
	}
	return "", fmt.Errorf("no command: %q", words)
}
