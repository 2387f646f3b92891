// Adds 1 to the number in a file, many times: `counter URL FILE COUNT [LOG]`.
//
// With `none` for a URL it takes no lock, and loses updates when several run at once. Appends each fencing token to LOG
// while it holds the lock. Prints one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	polylock "github.com/polylock/polylock/examples/go"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// addOne reads, takes a moment, writes back: wrong unless nobody else does so meanwhile.
func addOne(path string) {
	text, err := os.ReadFile(path)
	must(err)
	number, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(err)
	time.Sleep(100 * time.Microsecond)
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(err)
	// As wide as before, so that one write replaces the whole number.
	_, err = fmt.Fprintf(file, "%010d\n", number+1)
	must(err)
	must(file.Close())
}

func main() {
	if len(os.Args) < 4 {
		log.Fatal("usage: counter URL FILE COUNT [LOG]")
	}
	url, path := os.Args[1], os.Args[2]
	count, err := strconv.Atoi(os.Args[3])
	must(err)
	var locks *polylock.Manager
	if url != "none" {
		locks, err = polylock.Connect(strings.Split(url, ",")...)
		must(err)
	}
	var tokenLog *os.File
	if len(os.Args) > 4 {
		tokenLog, err = os.OpenFile(os.Args[4], os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
		must(err)
	}
	waits, tokens := make([]float64, 0, count), make([]uint64, 0, count)
	for range count {
		began := time.Now()
		if locks == nil {
			waits, tokens = append(waits, 0), append(tokens, 0)
			addOne(path)
			continue
		}
		lease, err := locks.Acquire(context.Background(), "counter")
		must(err)
		waits = append(waits, float64(time.Since(began))/float64(time.Millisecond))
		tokens = append(tokens, lease.FencingToken())
		if tokenLog != nil {
			_, err = fmt.Fprintln(tokenLog, lease.FencingToken())
			must(err)
		}
		addOne(path)
		_, err = lease.Release()
		must(err)
	}
	must(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"language": "go", "acquisitions": count, "wait_ms": waits, "tokens": tokens,
	}))
	must(polylock.Shutdown(2 * time.Second))
}
