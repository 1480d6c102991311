package query

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// errUnanswered is what those get who wait for a read that ended its goroutine.
var errUnanswered = errors.New("the read ended without an answer")

// flights are the reads under way.
type flights struct {
	mu  sync.Mutex // guards by, and how many wait for each
	by  map[flightKey]*flight
	all sync.WaitGroup
}

// flightKey is what those have in common who may share an answer. None of them asked after an invalidation that another asked before.
type flightKey struct {
	key   [32]byte
	token token
	asked uint64
}

// flight is one read for all who wait for it. It goes on, in a goroutine of its own, until the answer is kept, or nobody waits for it any more.
type flight struct {
	done    chan struct{} // closed when the answer is there
	data    []byte
	err     error
	fault   any // what it panicked with
	waiting int
	cancel  context.CancelFunc
}

// runner reads, calls answer once, and goes on with what nobody waits for.
type runner func(ctx context.Context, answer func([]byte, error))

// join waits for the read of this key, and begins it where there is none. shared tells that another had.
func (f *flights) join(ctx context.Context, key flightKey, run runner) (data []byte, shared bool, err error) {
	f.mu.Lock()
	one, shared := f.by[key]
	if !shared {
		one = f.begin(ctx, run, func(ended *flight) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.forget(key, ended)
		})
		if f.by == nil {
			f.by = map[flightKey]*flight{}
		}
		f.by[key] = one
	}
	one.waiting++
	f.mu.Unlock()

	data, err = one.wait(ctx)

	f.mu.Lock()
	one.waiting--
	left := one.waiting == 0
	if left && err != nil {
		f.forget(key, one) // at once: who comes now begins anew, and doesn't get what is cancelled
	}
	f.mu.Unlock()
	if left {
		one.cancel()
	}
	return data, shared, err
}

// alone reads for nobody else.
func (f *flights) alone(ctx context.Context, run runner) ([]byte, error) {
	one := f.begin(ctx, run, func(*flight) {})
	defer one.cancel()
	return one.wait(ctx)
}

// begin starts a read. The caller's end isn't its own.
func (f *flights) begin(ctx context.Context, run runner, ended func(*flight)) *flight {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	one := &flight{done: make(chan struct{}), err: errUnanswered, cancel: cancel}
	f.all.Go(func() {
		defer cancel()
		defer ended(one)
		one.run(ctx, run)
	})
	return one
}

// forget lets nobody join any more. The caller holds f.mu.
func (f *flights) forget(key flightKey, one *flight) {
	if f.by[key] == one {
		delete(f.by, key)
	}
}

func (one *flight) run(ctx context.Context, run runner) {
	answered := false
	defer func() {
		if answered {
			return
		}
		one.fault = recover() // theirs who wait, as it would be without a goroutine between
		close(one.done)
	}()
	run(ctx, func(data []byte, err error) {
		one.data, one.err = data, err
		answered = true
		close(one.done)
	})
}

// wait returns the answer, or when the caller's time is over. An answer that is there is given.
func (one *flight) wait(ctx context.Context) ([]byte, error) {
	select {
	case <-one.done:
	case <-ctx.Done():
		select {
		case <-one.done:
		default:
			return nil, fmt.Errorf("wait for the answer: %w", context.Cause(ctx))
		}
	}
	if one.fault != nil {
		panic(one.fault)
	}
	return one.data, one.err
}
