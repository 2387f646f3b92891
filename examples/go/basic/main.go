// Takes a lock: `basic URL`.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	polylock "github.com/polylock/polylock/examples/go"
)

func charge(token uint64) { fmt.Println("charged with fencing token", token) }

func run(ctx context.Context, url string) error {
	locks, err := polylock.Connect(url)
	if err != nil {
		return err
	}
	lease, err := locks.Acquire(ctx, "invoice:42", polylock.TTL(10*time.Second), polylock.Wait(5*time.Second))
	if err != nil {
		return err
	}
	charge(lease.FencingToken())
	_, err = lease.Release()
	return err
}

func main() {
	if err := run(context.Background(), os.Args[1]); err != nil {
		log.Fatal(err)
	}
	if err := polylock.Shutdown(2 * time.Second); err != nil {
		log.Fatal(err)
	}
}
