// Command sendfile sends one file to everybody who connects, and then closes.
//
// `cargo xtask e2e` runs it beside one client and fetches the file from the other.
package main

import (
	"flag"
	"io"
	"log"
	"net"
	"os"
)

func main() {
	listen := flag.String("listen", "", "address to listen on, as ip:port")
	name := flag.String("file", "", "file to send")
	flag.Parse()
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer conn.Close()
			if err := send(conn, *name); err != nil {
				log.Print(err)
			}
		}()
	}
}

func send(conn net.Conn, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(conn, file)
	return err
}
