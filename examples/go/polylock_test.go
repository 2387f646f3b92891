package polylock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

func open(t *testing.T) *Manager {
	t.Helper()
	locks, err := Connect("memory:")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { locks.Close() })
	return locks
}

func take(t *testing.T, locks *Manager, name string, options ...Option) *Lease {
	t.Helper()
	lease, err := locks.Acquire(context.Background(), name, options...)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

func failureOf[T any](_ T, err error) error { return err }

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func TestGoroutinesExcludeEachOther(t *testing.T) {
	locks := open(t)
	var group sync.WaitGroup
	var count int
	var last uint64
	for range 16 {
		group.Add(1)
		go func() {
			defer group.Done()
			for range 50 {
				err := locks.Do(context.Background(), "r", func(_ context.Context, lease *Lease) error {
					if lease.FencingToken() <= last {
						return fmt.Errorf("token %d after %d", lease.FencingToken(), last)
					}
					last, count = lease.FencingToken(), count+1
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	group.Wait()
	if count != 16*50 {
		t.Errorf("%d updates", count)
	}
}

func TestTheContextEndsTheWaiting(t *testing.T) {
	locks := open(t)
	held := take(t, locks, "r")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		_, err := locks.Acquire(ctx, "r")
		ended <- err
	}()
	until(t, "waiting", func() bool { count, _ := locks.Waiting("r"); return count == 1 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	until(t, "gone", func() bool { count, _ := locks.Waiting("r"); return count == 0 })
	if _, err := locks.Acquire(ctx, "free"); !errors.Is(err, context.Canceled) {
		t.Error("a context that is done acquires nothing: ", err)
	}
	deadline, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	if _, err := locks.Acquire(deadline, "r"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if outcome, err := held.Release(); outcome != Released || err != nil {
		t.Error(outcome, err)
	}
	if lease := take(t, locks, "r", Wait(time.Minute)); !lease.IsHeld() {
		t.Error("the waiting left something behind")
	}
}

func TestAGrantThatNobodyWantsAnyMoreIsGivenBack(t *testing.T) {
	locks := open(t)
	for range 200 {
		ctx, cancel := context.WithCancel(context.Background())
		go cancel() // before, while or after it is granted
		if lease, err := locks.Acquire(ctx, "r"); err == nil {
			lease.Release()
		} else if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if _, err := take(t, locks, "r", Wait(time.Minute)).Release(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALossCancelsTheWork(t *testing.T) {
	locks := open(t)
	err := locks.Do(context.Background(), "r", func(ctx context.Context, lease *Lease) error {
		<-ctx.Done()
		if cause := context.Cause(ctx); !errors.Is(cause, Lost) {
			t.Error(cause)
		}
		return nil
	}, TTL(50*time.Millisecond), NoAutoExtend())
	if !errors.Is(err, Lost) {
		t.Error(err)
	}
	lease := take(t, locks, "s")
	lost := lease.Lost()
	lease.Release()
	select {
	case <-lost:
		t.Error("released, not lost")
	case <-time.After(20 * time.Millisecond):
	}
	own := errors.New("own")
	if err := locks.Do(context.Background(), "r", func(context.Context, *Lease) error { return own }); err != own {
		t.Error(err)
	}
}

func TestModesAndSeveral(t *testing.T) {
	locks := open(t)
	first, second := take(t, locks, "r", Shared()), take(t, locks, "r", Shared())
	if busy, err := locks.TryAcquire("r"); busy != nil || err != nil {
		t.Error(busy, err)
	}
	first.Release()
	second.Release()
	permit := take(t, locks, "s", Permit(1))
	if busy, err := locks.TryAcquire("s", Permit(1)); busy != nil || err != nil {
		t.Error(busy, err)
	}
	permit.Release()
	both, err := locks.AcquireAll(context.Background(), []string{"b", "a"})
	if err != nil || fmt.Sprint(both.Resources()) != "[a b]" {
		t.Fatal(both, err)
	}
	if busy, err := locks.TryAcquire("b"); busy != nil || err != nil {
		t.Error(busy, err)
	}
	for what, err := range map[string]error{
		"Acquire":    failureOf(locks.Acquire(context.Background(), "a\x00b")),
		"AcquireAll": failureOf(locks.AcquireAll(context.Background(), []string{"a", "b\x00c"})),
		"Waiting":    failureOf(locks.Waiting("a\x00b")),
		"Label":      failureOf(locks.Acquire(context.Background(), "r", Label("a\x00b"))),
		"Connect":    failureOf(Connect("memory:\x00")),
	} {
		if !errors.Is(err, InvalidArgument) {
			t.Error(what, "takes a part of a text: ", err)
		}
	}
	if _, err := locks.AcquireAll(context.Background(), nil); !errors.Is(err, InvalidArgument) {
		t.Error(err)
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	locks := open(t)
	var failed *Error
	if _, err := Connect("nonsense"); !errors.As(err, &failed) || failed.Argument != "url" || failed.Code != InvalidArgument {
		t.Error(err)
	}
	if _, err := locks.Acquire(context.Background(), "r", TTL(-time.Second)); !errors.As(err, &failed) || failed.Argument != "ttl" {
		t.Error(err)
	}
	held := take(t, locks, "r")
	if _, err := locks.Acquire(context.Background(), "r", Wait(5*time.Millisecond)); !IsBusy(err) || !errors.As(err, &failed) ||
		failed.Resource != "r" || !failed.Retryable {
		t.Error(err)
	}
	held.Release()
	if err := held.Extend(); !errors.Is(err, Lost) {
		t.Error(err)
	}
	locks.Close()
	if _, err := locks.Acquire(context.Background(), "r"); !errors.Is(err, Closed) || err.Error() == "" {
		t.Error(err)
	}
}

func TestAForgottenLeaseIsReleased(t *testing.T) {
	locks := open(t)
	func() { take(t, locks, "r").Lost() }()
	until(t, "collected", func() bool {
		runtime.GC()
		lease, err := locks.TryAcquire("r")
		return err == nil && lease != nil
	})
}

func TestMain(m *testing.M) {
	status := m.Run()
	if err := Shutdown(10 * time.Second); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}
