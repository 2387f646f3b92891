package polylock

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The scenarios of tests/scenarios, whose README has the format, on every backend.
const scenarios = "../../tests/scenarios/*.scenario"

type actor struct {
	locks              *Manager
	lease              *Lease
	token, tokenBefore uint64
	cancel             context.CancelFunc
	pending            chan error
	pendingLease       *Lease
}

type play struct {
	urls   []string
	prefix string
	actors map[string]*actor
}

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob(scenarios)
	if err != nil || len(files) < 20 {
		t.Fatalf("too few scenarios: %d (%v)", len(files), err)
	}
	urls := os.Getenv("POLYLOCK_TEST_URLS")
	if urls == "" {
		urls = "memory:"
	}
	for number, url := range strings.Fields(urls) {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Parallel()
			for index, file := range files {
				t.Run(filepath.Base(file), func(t *testing.T) { playFile(t, url, file, fmt.Sprintf("go-%d-%d-%d", os.Getpid(), number, index)) })
			}
		})
	}
}

func playFile(t *testing.T, url, file, prefix string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if url == "memory:" {
		url += prefix
	}
	play := play{strings.Split(url, ","), prefix, map[string]*actor{}}
	defer func() {
		for _, actor := range play.actors {
			actor.locks.Close()
		}
	}()
	steps := 0
	for number, line := range strings.Split(string(text), "\n") {
		needs, asks := strings.CutPrefix(line, "needs: ")
		switch {
		case line == "" || line[0] == '#' || strings.HasPrefix(line, "name: "):
		case asks:
			if !play.can(t, needs) {
				t.Skip("needs", needs)
			}
		default:
			step, expected, _ := strings.Cut(line, " => ")
			outcome := play.step(t, strings.Fields(step), expected)
			if !fits(outcome, expected) {
				t.Fatalf("%s:%d: %s (on %s): not %s", file, number+1, line, url, outcome)
			}
			steps++
		}
	}
	if steps == 0 {
		t.Fatal("no steps")
	}
}

func (p *play) can(t *testing.T, needs string) bool {
	if strings.Contains(needs, "break") && strings.HasPrefix(p.urls[0], "memory:") {
		return false
	}
	return !strings.Contains(needs, "inspect") || p.connect(t).can(canInspect)
}

// With time for an answer: a busy machine is no dead server.
func (p *play) connect(t *testing.T) *Manager {
	locks, err := connect(2000, p.urls)
	if err != nil {
		t.Fatal(err)
	}
	return locks
}

func fits(outcome, expected string) bool {
	low, high, isRange := strings.Cut(expected, "..")
	if !isRange {
		return outcome == expected
	}
	number, err := strconv.Atoi(outcome)
	least, _ := strconv.Atoi(low)
	most, _ := strconv.Atoi(high)
	return err == nil && least <= number && number <= most
}

func (p *play) name(word string) string {
	switch word {
	case "<empty>":
		return ""
	case "<long>":
		return strings.Repeat("x", 1025)
	case "<nul>":
		return "a\x00b"
	case "<invalid-utf8>":
		return "\xff\xfe"
	}
	return p.prefix + ":" + word
}

// A number of milliseconds; also what is none.
func number(text string) float64 {
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.NaN()
	}
	return value
}

func (p *play) step(t *testing.T, words []string, expected string) string {
	keys := map[string]string{}
	for _, word := range words {
		if key, value, found := strings.Cut(word, "="); found {
			keys[key] = value
		}
	}
	switch words[0] {
	case "sleep":
		time.Sleep(time.Duration(number(words[1])) * time.Millisecond)
		return ""
	case "break":
		if output, err := exec.Command(os.Getenv("POLYLOCK_TEST_BREAK"), p.name(words[1])).CombinedOutput(); err != nil {
			return fmt.Sprintf("not broken: %v %s", err, output)
		}
		return ""
	}
	who := p.actors[words[0]]
	if who == nil {
		who = &actor{locks: p.connect(t)}
		p.actors[words[0]] = who
	}
	outcome, err := p.act(who, words, keys, expected)
	var failed *Error
	switch {
	case errors.As(err, &failed) && failed.Argument != "":
		return failed.Code.Error() + ":" + failed.Argument
	case failed != nil:
		return failed.Code.Error()
	case err != nil:
		return err.Error()
	}
	return outcome
}

func how(keys map[string]string) []Option {
	options := []Option{TTL(5 * time.Second)}
	if ttl, given := keys["ttl"]; given {
		options[0] = ttlMS(number(ttl))
	}
	switch wait, given := keys["wait"]; {
	case !given || wait == "none":
		options = append(options, Wait(0))
	case wait != "forever":
		options = append(options, waitMS(number(wait)))
	}
	if keys["auto_extend"] == "false" {
		options = append(options, NoAutoExtend())
	}
	if most, given := keys["max_hold"]; given {
		options = append(options, maxHoldMS(number(most)))
	}
	if label, given := keys["label"]; given {
		options = append(options, Label(label))
	}
	return options
}

func (a *actor) took(lease *Lease) (string, error) {
	a.lease, a.tokenBefore, a.token = lease, a.token, lease.FencingToken()
	return "ok", nil
}

func (p *play) act(who *actor, words []string, keys map[string]string, expected string) (string, error) {
	switch words[1] {
	case "acquire":
		if words[len(words)-1] == "&" {
			ctx, cancel := context.WithCancel(context.Background())
			who.cancel, who.pending = cancel, make(chan error, 1)
			go func() {
				lease, err := who.locks.Acquire(ctx, p.name(words[2]), how(keys)...)
				who.pendingLease = lease
				who.pending <- err
			}()
			return "", nil
		}
		lease, err := who.locks.Acquire(context.Background(), p.name(words[2]), how(keys)...)
		if err != nil {
			return "", err
		}
		return who.took(lease)
	case "try":
		lease, err := who.locks.TryAcquire(p.name(words[2]), how(keys)...)
		if err != nil || lease == nil {
			return "busy", err
		}
		return who.took(lease)
	case "join":
		if err := <-who.pending; err != nil {
			return "", err
		}
		return who.took(who.pendingLease)
	case "cancel":
		who.cancel()
		if err := <-who.pending; !errors.Is(err, context.Canceled) {
			return fmt.Sprint("not cancelled: ", err), nil
		}
		return "cancelled", nil
	case "inspect":
		holder, err := who.locks.Inspect(p.name(words[2]))
		switch {
		case err != nil:
			return "", err
		case holder == nil:
			return "free", nil
		case holder.Label == "":
			return "held", nil
		}
		return "held:" + holder.Label, nil
	case "waiting":
		for round := 0; ; round++ {
			count, err := who.locks.Waiting(p.name(words[2]))
			if err != nil || strconv.Itoa(count) == expected || round == 1000 {
				return strconv.Itoa(count), err
			}
			time.Sleep(5 * time.Millisecond)
		}
	case "close":
		return "ok", who.locks.Close()
	case "newer_than":
		return strconv.FormatBool(who.token > p.actors[words[2]].token), nil
	case "newer_than_before":
		return strconv.FormatBool(who.token > who.tokenBefore), nil
	}
	return who.ask(words[1], keys)
}

func (a *actor) ask(action string, keys map[string]string) (string, error) {
	switch action {
	case "extend":
		if ttl, given := keys["ttl"]; given {
			return "ok", a.lease.extendMS(number(ttl))
		}
		return "ok", a.lease.Extend()
	case "release":
		outcome, err := a.lease.Release()
		return outcome.String(), err
	case "held":
		return strconv.FormatBool(a.lease.IsHeld()), nil
	case "remaining":
		return strconv.Itoa(int(a.lease.Remaining() / time.Millisecond)), nil
	case "lost":
		select {
		case <-a.lease.Lost():
			return a.lease.Loss().String(), nil
		case <-time.After(time.Duration(number(keys["within"])) * time.Millisecond):
			return "none", nil
		}
	}
	return "unknown action " + action, nil
}
