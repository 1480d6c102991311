package query_test

import (
	"context"
	"crypto/sha256"
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
const redisTimeout = 2 * time.Second

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

// cached is a cache with the metrics that it counts in.
type cached struct {
	*query.Cache
	client  *redis.Client
	metrics *metrics.Metrics
}

func newCache(t *testing.T, client *redis.Client, change ...func(*query.CacheOptions)) cached {
	t.Helper()
	o := query.CacheOptions{
		Namespace: func(context.Context) (string, error) { return "test", nil },
		TTL:       time.Hour, EntryBytes: 1 << 20, Timeout: redisTimeout, Metrics: metrics.New("test", event.Reasons()),
	}
	for _, c := range change {
		c(&o)
	}
	c := cached{query.NewCache(client, o), client, o.Metrics}
	t.Cleanup(c.Close)
	return c
}

// source answers with what it holds, and counts how often it was asked.
type source struct {
	answer atomic.Pointer[string]
	asked  atomic.Int32
}

func newSource(answer string) *source {
	s := &source{}
	s.answer.Store(&answer)
	return s
}

func (s *source) says(answer string) { s.answer.Store(&answer) }

func (s *source) load(context.Context) ([]byte, error) {
	s.asked.Add(1)
	return []byte(*s.answer.Load()), nil
}

var question = sha256.Sum256([]byte("question"))

func (c cached) read(t *testing.T, s *source) string {
	t.Helper()
	data, err := c.Do(t.Context(), question, time.Hour, s.load)
	require.NoError(t, err)
	return string(data)
}

// settled reads once and waits until the answer is kept.
func (c cached) settled(t *testing.T, s *source) string {
	t.Helper()
	answer := c.read(t, s)
	c.Close()
	return answer
}

func TestCache(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, s := newCache(t, connect(t, server.URL(), redisTimeout)), newSource("first")
	require.Equal(t, "first", c.settled(t, s))
	s.says("second")
	require.Equal(t, "first", c.settled(t, s))
	other, err := c.Do(t.Context(), sha256.Sum256([]byte("another")), time.Hour, s.load)
	require.NoError(t, err)
	require.Equal(t, "second", string(other))
	require.NoError(t, c.Invalidate(t.Context()))
	require.Equal(t, "second", c.settled(t, s))
	require.EqualValues(t, 3, s.asked.Load())
	stats := c.Stats()
	require.EqualValues(t, 4, stats.Gets)
	require.EqualValues(t, 1, stats.Hits)
	require.InDelta(t, 0.25, stats.Ratio, 0)
}
