package query_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"auditsink/internal/query"
	"auditsink/internal/testkit"
)

// versions are the states of a database, one after the other, in which each lacks rows that the one before had.
type versions struct{ now, settled atomic.Int64 }

func (v *versions) current() string { return strconv.FormatInt(v.now.Load(), 10) }

// least is the oldest version that a read that begins now may show.
func (v *versions) least() int64 { return v.settled.Load() }

// replace removes rows and tells the cache.
func (v *versions) replace(invalidate func() error) error {
	next := v.now.Add(1)
	err := invalidate()
	if err == nil {
		v.settled.Store(next)
	}
	return err
}

func (v *versions) check(answer string, least int64) error {
	got, err := strconv.ParseInt(answer, 10, 64)
	if err != nil {
		return fmt.Errorf("a damaged answer: %w", err)
	}
	if got < least || got > v.now.Load() {
		return fmt.Errorf("version %d was served where %d was the least, and %d is current", got, least, v.now.Load())
	}
	return nil
}

// TestCacheModel: whatever two processes and their Redis do, and whatever gets lost between them, no read shows rows that had gone before an invalidation succeeded that was
// over when it began. A read may have anything happen between its begin in the database and its end.
func TestCacheModel(t *testing.T) {
	const ample = time.Minute // nothing but what is planned gets lost, however busy the machine is
	server := testkit.OwnRedis(t)
	clients := [2]*loss{{}, {}}
	caches := [2]cached{}
	for i := range caches {
		client := connect(t, server.URL(), ample)
		client.AddHook(clients[i])
		caches[i] = newCache(t, client, func(o *query.CacheOptions) { o.Timeout = ample })
	}
	admin := connect(t, server.URL(), redisTimeout)
	ctx := t.Context()
	hits := 0
	lost := map[string]*atomic.Int32{"entry": {}, "first": {}, "renew": {}} // 0: stored and reported as failed; 1: failed
	rapid.Check(t, func(t *rapid.T) {
		require.NoError(t, admin.FlushAll(ctx).Err())
		v := &versions{}
		for i := range caches {
			clients[i].fails = nil
			require.NoError(t, caches[i].Invalidate(ctx)) // nothing is pending from the run before
			clients[i].fails = func(of string) (fail, done bool) {
				way := lost[of].Load()
				return way < 2, way == 0
			}
		}
		for _, way := range lost {
			way.Store(9)
		}
		which := func() cached { return caches[rapid.IntRange(0, 1).Draw(t, "process")] }
		one := func(keys string) {
			all, err := admin.Keys(ctx, keys).Result()
			require.NoError(t, err)
			if len(all) > 0 {
				require.NoError(t, admin.Del(ctx, all[rapid.IntRange(0, len(all)-1).Draw(t, "key")]).Err())
			}
		}
		var step func(depth int)
		process := 0
		read := func(depth int) {
			if depth == 0 {
				process = rapid.IntRange(0, 1).Draw(t, "process")
			}
			c, least, readCtx := caches[(process+depth)%2], v.least(), ctx // within another read the other process: the same would wait for its own read
			if rapid.IntRange(0, 9).Draw(t, "fresh") == 0 {
				readCtx = query.Fresh(ctx)
			}
			before := c.Stats().Hits
			data, err := c.Do(readCtx, key(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "question")), time.Hour, func(context.Context) ([]byte, error) {
				answer := []byte(v.current())
				for range rapid.IntRange(0, 2).Draw(t, "meanwhile") {
					step(depth + 1)
				}
				return answer, nil
			})
			require.NoError(t, err)
			require.NoError(t, v.check(string(data), least))
			if depth == 0 {
				for _, c := range caches {
					c.Close()
				}
			}
			hits += int(c.Stats().Hits - before)
		}
		step = func(depth int) {
			for _, of := range []string{"entry", "first", "renew"} {
				lost[of].Store(int32(rapid.IntRange(0, 9).Draw(t, of)))
			}
			switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
			case what < 5 && depth < 2:
				read(depth)
			case what < 7:
				v.now.Add(1) // rows go, and nobody is told yet
			case what == 7:
				if err := v.replace(func() error { return which().Invalidate(ctx) }); err != nil {
					require.True(t, errors.Is(err, errLost), err)
				}
			case what == 8:
				one("*:generation")
			default:
				one("*:entry:*")
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			step(0)
		}
	})
	require.Greater(t, hits, 10, "it would show nothing")
}
