package query

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFlightLeftAndJoined: who joins a read while the last who waited for it leaves gets an answer, and not the end of what was left.
func TestFlightLeftAndJoined(t *testing.T) {
	var f flights
	read := func(ctx context.Context, answer func([]byte, error)) {
		select {
		case <-ctx.Done():
			answer(nil, context.Cause(ctx))
		default:
			answer([]byte("answer"), nil)
		}
	}
	stop := make(chan struct{})
	var leaving, staying sync.WaitGroup
	for range 4 {
		leaving.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				_, _, _ = f.join(ctx, flightKey{}, read)
			}
		})
	}
	failed := make(chan error, 4)
	for range 4 {
		staying.Go(func() {
			for range 100_000 {
				if _, _, err := f.join(t.Context(), flightKey{}, read); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	staying.Wait()
	close(stop)
	leaving.Wait()
	close(failed)
	for err := range failed {
		require.NoError(t, err)
	}
	f.all.Wait()
	require.Empty(t, f.by)
}
