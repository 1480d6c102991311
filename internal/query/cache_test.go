package query_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/internal/query"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

// redisTimeout bounds an operation of Redis in tests: long enough for a busy machine.
const redisTimeout = 5 * time.Second

// connect opens a client as the program does.
func connect(t *testing.T, url string, timeout time.Duration) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(url)
	require.NoError(t, err)
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = timeout, timeout, timeout, timeout
	o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled = -1, 1, true
	client := redis.NewClient(o)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

// clock is a process's clock that only a test moves.
type clock struct{ now atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.now.Store(time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) time() time.Time         { return time.Unix(0, c.now.Load()) }
func (c *clock) advance(d time.Duration) { c.now.Add(int64(d)) }

// cached is a cache, and what it is made of.
type cached struct {
	*query.Cache
	client  *redis.Client
	metrics *metrics.Metrics
	clock   *clock
}

func newCache(t *testing.T, client *redis.Client, change ...func(*query.CacheOptions)) cached {
	t.Helper()
	c := newClock()
	o := query.CacheOptions{
		Namespace: func(context.Context) (string, error) { return "test", nil },
		TTL:       time.Hour, EntryBytes: 1 << 20, Timeout: redisTimeout, Metrics: metrics.New("test", event.Reasons()), Now: c.time,
	}
	for _, change := range change {
		change(&o)
	}
	all := cached{query.NewCache(client, o), client, o.Metrics, c}
	t.Cleanup(all.Close)
	return all
}

// results are how many reads asked the cache, by what came of it: hit, miss, shared, error.
func (c cached) results(t *testing.T) [4]int {
	t.Helper()
	sample, err := c.metrics.Sample(time.Now())
	require.NoError(t, err)
	var all [4]int
	by := sample.By("query_cache_requests_total", "result")
	for i, result := range []string{"hit", "miss", "shared", "error"} {
		all[i] = int(by[result])
	}
	return all
}

// source answers with what it says, and counts how often it was asked.
type source struct {
	answer atomic.Pointer[string]
	asked  atomic.Int32
}

func newSource(answer string) *source {
	s := &source{}
	s.says(answer)
	return s
}

func (s *source) says(answer string) { s.answer.Store(&answer) }

func (s *source) load(context.Context) ([]byte, error) {
	s.asked.Add(1)
	return []byte(*s.answer.Load()), nil
}

func key(of string) [32]byte { return sha256.Sum256([]byte(of)) }

// read asks once, and waits until the answer is kept.
func (c cached) read(t *testing.T, s *source) string {
	t.Helper()
	data, err := c.Do(t.Context(), key("question"), time.Hour, s.load)
	require.NoError(t, err)
	c.Close()
	return string(data)
}

// kept are the keys of the entries in Redis.
func (c cached) kept(t *testing.T) []string {
	t.Helper()
	all, err := c.client.Keys(t.Context(), "auditsink:cache:*:entry:*").Result()
	require.NoError(t, err)
	return all
}

func TestCache(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, s := newCache(t, connect(t, server.URL(), redisTimeout)), newSource("first")
	require.Equal(t, "first", c.read(t, s))
	s.says("second")
	require.Equal(t, "first", c.read(t, s))

	other, err := c.Do(t.Context(), key("another question, or scope"), time.Hour, s.load)
	require.NoError(t, err)
	require.Equal(t, "second", string(other))

	require.NoError(t, c.Invalidate(t.Context()))
	require.Equal(t, "second", c.read(t, s))
	s.says("third")
	fresh, err := c.Do(query.Fresh(t.Context()), key("question"), time.Hour, s.load)
	require.NoError(t, err)
	require.Equal(t, "third", string(fresh))
	c.Close()
	s.says("fourth")
	require.Equal(t, "third", c.read(t, s), "what was read afresh is kept for others")

	require.EqualValues(t, 4, s.asked.Load())
	require.Equal(t, [4]int{2, 3, 0, 0}, c.results(t), "who doesn't ask the cache isn't counted")
	stats := c.Stats()
	require.Equal(t, query.CacheStats{Reachable: true, Storing: true, Gets: 5, Hits: 2, Ratio: 0.4}, stats)
	for _, k := range c.kept(t) {
		life, err := c.client.PTTL(t.Context(), k).Result()
		require.NoError(t, err)
		require.Greater(t, life, 50*time.Minute)
	}

	empty := newSource("")
	for range 2 {
		data, err := c.Do(t.Context(), key("nothing"), time.Hour, empty.load)
		require.NoError(t, err)
		require.Empty(t, data)
		c.Close()
	}
	require.EqualValues(t, 1, empty.asked.Load(), "an empty answer is one")
}

// TestCacheNone: without a Redis, a life or a cache, it is as if there were none.
func TestCacheNone(t *testing.T) {
	server := testkit.OwnRedis(t)
	client := connect(t, server.URL(), redisTimeout)
	for name, c := range map[string]cached{
		"no cache":  {Cache: nil, metrics: metrics.New("test", event.Reasons())},
		"no client": newCache(t, nil),
		"no TTL":    newCache(t, client, func(o *query.CacheOptions) { o.TTL = 0 }),
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource("first")
			require.Equal(t, "first", c.read(t, s))
			s.says("second")
			require.Equal(t, "second", c.read(t, s))
			require.Equal(t, [4]int{}, c.results(t))
			require.NoError(t, c.Invalidate(t.Context()))
			require.NoError(t, c.Clear(t.Context()))
			require.True(t, c.Stats().Reachable)
			ctx, cancel := context.WithCancel(t.Context())
			c.Watch(ctx, time.Hour, func(query.CacheStats) { cancel() })
		})
	}
	c, s := newCache(t, client), newSource("first")
	for range 2 {
		_, err := c.Do(t.Context(), key("question"), 0, s.load)
		require.NoError(t, err)
	}
	require.EqualValues(t, 2, s.asked.Load())
	require.Empty(t, c.kept(t))
}

// TestCacheInvalidateWithoutTTL: who keeps nothing still tells others that rows have gone.
func TestCacheInvalidateWithoutTTL(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, s := newCache(t, connect(t, server.URL(), redisTimeout)), newSource("first")
	c.read(t, s)
	s.says("second")
	leader := newCache(t, connect(t, server.URL(), redisTimeout), func(o *query.CacheOptions) { o.TTL = 0 })
	require.NoError(t, leader.Invalidate(t.Context()))
	require.Equal(t, "second", c.read(t, s))
}

// TestCacheNamespaces: databases that share a Redis don't mix, and one that can't be named yet has no cache.
func TestCacheNamespaces(t *testing.T) {
	server := testkit.OwnRedis(t)
	named := func(name string) func(*query.CacheOptions) {
		return func(o *query.CacheOptions) { o.Namespace = func(context.Context) (string, error) { return name, nil } }
	}
	a, b := newCache(t, connect(t, server.URL(), redisTimeout), named("a")), newCache(t, connect(t, server.URL(), redisTimeout), named("b"))
	ofA, ofB := newSource("a's"), newSource("b's")
	require.Equal(t, "a's", a.read(t, ofA))
	require.Equal(t, "b's", b.read(t, ofB))
	ofA.says("new")
	ofB.says("new")
	require.NoError(t, a.Invalidate(t.Context()))
	require.Equal(t, "new", a.read(t, ofA))
	require.Equal(t, "b's", b.read(t, ofB), "an invalidation is one database's")

	asked, unknown := 0, errors.New("not now")
	c := newCache(t, connect(t, server.URL(), redisTimeout), func(o *query.CacheOptions) {
		o.Namespace = func(context.Context) (string, error) {
			asked++
			if asked < 3 {
				return "", unknown
			}
			return "c", nil
		}
	})
	s := newSource("first")
	require.Equal(t, "first", c.read(t, s))
	require.ErrorIs(t, c.Invalidate(t.Context()), unknown)
	require.NoError(t, c.Invalidate(t.Context()))
	for range 2 {
		require.Equal(t, "first", c.read(t, s))
	}
	require.Equal(t, [4]int{1, 1, 0, 1}, c.results(t))
	require.Equal(t, 3, asked)
}

// TestCacheLimits: what is too large isn't kept, and nothing lives longer than was asked for, from when it was asked.
func TestCacheLimits(t *testing.T) {
	server := testkit.OwnRedis(t)
	c := newCache(t, connect(t, server.URL(), redisTimeout), func(o *query.CacheOptions) { o.EntryBytes, o.TTL = 100, 10*time.Minute })
	large, small := newSource(strings.Repeat("x", 101)), newSource(strings.Repeat("x", 100))
	c.read(t, large)
	c.read(t, large)
	require.EqualValues(t, 2, large.asked.Load())
	require.EqualValues(t, 2, c.Stats().Oversized)
	require.Empty(t, c.kept(t))
	c.read(t, small)
	c.read(t, small)
	require.EqualValues(t, 1, small.asked.Load())
	life, err := c.client.PTTL(t.Context(), c.kept(t)[0]).Result()
	require.NoError(t, err)
	require.LessOrEqual(t, life, 10*time.Minute, "the setting bounds what is asked for")

	require.NoError(t, c.client.FlushAll(t.Context()).Err())
	_, err = c.Do(t.Context(), key("question"), time.Minute, func(context.Context) ([]byte, error) {
		c.clock.advance(40 * time.Second)
		return nil, nil
	})
	require.NoError(t, err)
	c.Close()
	life, err = c.client.PTTL(t.Context(), c.kept(t)[0]).Result()
	require.NoError(t, err)
	require.LessOrEqual(t, life, 20*time.Second, "a slow read is old when it is kept")
	require.NoError(t, c.client.FlushAll(t.Context()).Err())
	_, err = c.Do(t.Context(), key("question"), time.Minute, func(context.Context) ([]byte, error) {
		c.clock.advance(time.Hour)
		return nil, nil
	})
	require.NoError(t, err)
	c.Close()
	require.Empty(t, c.kept(t))
}

// TestCacheClear: a cache that doesn't pay is emptied for all, and rests where it was found out.
func TestCacheClear(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, other, s := newCache(t, connect(t, server.URL(), redisTimeout)), newCache(t, connect(t, server.URL(), redisTimeout)), newSource("first")
	c.read(t, s)
	s.says("second")
	require.NoError(t, c.Clear(t.Context()))
	require.Equal(t, c.clock.time().Add(query.Rest).UTC(), c.Stats().PausedUntil)
	require.Equal(t, "second", other.read(t, s))
	s.says("third")
	require.Equal(t, "third", c.read(t, s))
	require.Equal(t, [4]int{0, 1, 0, 0}, c.results(t))
	c.clock.advance(query.Rest)
	require.Zero(t, c.Stats().PausedUntil)
	require.Equal(t, "second", c.read(t, s))
}

// TestCacheForeign: whatever is found in the place of an entry or a generation, only an answer to the question that was kept whole is served.
func TestCacheForeign(t *testing.T) {
	server := testkit.OwnRedis(t)
	c := newCache(t, connect(t, server.URL(), redisTimeout))
	ctx := t.Context()
	set := func(key string, change func([]byte) []byte) {
		value, err := c.client.Get(ctx, key).Bytes()
		require.NoError(t, err)
		require.NoError(t, c.client.Set(ctx, key, change(value), 0).Err())
	}
	all := map[string]func(generation, entry string){
		"list as entry": func(_, entry string) {
			require.NoError(t, c.client.Del(ctx, entry).Err())
			require.NoError(t, c.client.LPush(ctx, entry, "x").Err())
		},
		"hash as generation": func(generation, _ string) {
			require.NoError(t, c.client.Del(ctx, generation).Err())
			require.NoError(t, c.client.HSet(ctx, generation, "x", "y").Err())
		},
		"text as generation":  func(generation, _ string) { require.NoError(t, c.client.Set(ctx, generation, "x", 0).Err()) },
		"empty generation":    func(generation, _ string) { require.NoError(t, c.client.Set(ctx, generation, "", 0).Err()) },
		"no generation":       func(generation, _ string) { require.NoError(t, c.client.Del(ctx, generation).Err()) },
		"no entry":            func(_, entry string) { require.NoError(t, c.client.Del(ctx, entry).Err()) },
		"nothing":             func(_, _ string) { require.NoError(t, c.client.FlushAll(ctx).Err()) },
		"empty entry":         func(_, entry string) { set(entry, func([]byte) []byte { return nil }) },
		"longer":              func(_, entry string) { set(entry, func(b []byte) []byte { return append(b, 0) }) },
		"other format":        func(_, entry string) { set(entry, func(b []byte) []byte { b[0]++; return b }) },
		"another's answer":    func(_, entry string) { set(entry, func([]byte) []byte { return []byte("first") }) },
		"key of another":      func(_, entry string) { require.NoError(t, c.client.Rename(ctx, c.other(t, entry), entry).Err()) },
		"answer and its half": func(_, entry string) { set(entry, func(b []byte) []byte { return append(b, b[len(b)/2:]...) }) },
	}
	for n := range 26 { // the header and the answer
		all["cut at "+string(rune('a'+n))] = func(_, entry string) { set(entry, func(b []byte) []byte { return b[:min(n, len(b)-1)] }) }
		all["damaged at "+string(rune('a'+n))] = func(_, entry string) {
			set(entry, func(b []byte) []byte { b[min(n, len(b)-1)] ^= 0x40; return b })
		}
	}
	for name, spoil := range all {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.client.FlushAll(ctx).Err())
			s := newSource("first")
			require.Equal(t, "first", c.read(t, s))
			entry := c.kept(t)[0]
			_, err := c.Do(ctx, key("another"), time.Hour, newSource("another's").load)
			require.NoError(t, err)
			c.Close()
			generations, err := c.client.Keys(ctx, "auditsink:cache:*:generation").Result()
			require.NoError(t, err)
			require.Len(t, generations, 1)
			spoil(generations[0], entry)
			s.says("second")
			require.Equal(t, "second", c.read(t, s))
			s.says("third")
			require.Equal(t, "second", c.read(t, s), "it is kept again")
		})
	}
	require.Zero(t, c.results(t)[3])
}

// other is the key of the entry that isn't this one.
func (c cached) other(t *testing.T, entry string) string {
	t.Helper()
	rest := slices.DeleteFunc(c.kept(t), func(k string) bool { return k == entry })
	require.Len(t, rest, 1)
	return rest[0]
}
