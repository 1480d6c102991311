package consumer

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAwaitRoom: a poll waits while the lanes hold more than the budget, but not for ever, for they may be stuck.
func TestAwaitRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, other := newTestLane(wide), newTestLane(wide)
		c := &member{
			opts: Options{BufferBytes: 500}, freed: make(chan struct{}, 1),
			lanes: map[laneKey]*lane{{"t", 0}: one, {"t", 1}: other},
		}
		waited := func(ctx context.Context) time.Duration {
			began := time.Now() // the clock is synctest's
			c.awaitRoom(ctx)
			return time.Since(began)
		}
		one.put(records(0, 1), time.Now())
		require.Zero(t, waited(t.Context()), "%d bytes are within the budget", c.buffered())

		other.put(records(0, 1), time.Now())
		require.Equal(t, roomWait, waited(t.Context()), "%d bytes are more, and stay", c.buffered())

		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.Equal(t, time.Millisecond, waited(ctx), "a poll that is to be woken")

		go func() {
			time.Sleep(10 * time.Millisecond)
			c.freed <- struct{}{} // of something before: it still isn't enough
			time.Sleep(10 * time.Millisecond)
			one.discard()
			c.freed <- struct{}{}
		}()
		require.Equal(t, 20*time.Millisecond, waited(t.Context()))
	})
}
