package query_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/internal/query"
	"auditsink/internal/testkit"
)

// rig is a cache of reads of a real database in a real Redis, behind a proxy.
type rig struct {
	*testing.T
	cached
	bed      *bed
	redis    *testkit.RedisServer
	proxy    *testkit.Proxy
	cutter   *cutter
	admin    *redis.Client // goes around the proxy
	logs     *observer.ObservedLogs
	deadline time.Duration // of a read
	rows     int
}

// newRig starts a Redis with these options. Each operation of it may take as long as timeout.
func newRig(t *testing.T, timeout time.Duration, options ...string) *rig {
	r := &rig{T: t, bed: newBed(t, 18), redis: testkit.OwnRedis(t, options...), deadline: time.Minute}
	r.proxy = testkit.OwnProxy(t, r.redis.Address())
	r.cutter = newCutter(t, r.proxy.Address())
	r.admin = connect(t, r.redis.URL(), redisTimeout)
	core, logs := observer.New(zapcore.DebugLevel)
	r.logs = logs
	r.cached = newCache(t, connect(t, "redis://"+r.cutter.address, timeout), func(o *query.CacheOptions) {
		o.Timeout, o.Log, o.Namespace = timeout, zap.New(core), r.bed.pool.Identity
	})
	return r
}

// add stores an event.
func (r *rig) add() {
	r.Helper()
	_, err := r.bed.pool.Exec(r.Context(), `INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'secret', 'success')`)
	require.NoError(r, err)
	r.rows++
}

// count reads how many events there are, as the answer to one of many questions, and pads the answer to this size.
func (r *rig) count(question string, size int) int {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), r.deadline)
	defer cancel()
	data, err := r.Do(ctx, key(question), time.Hour, func(ctx context.Context) ([]byte, error) {
		n := 0
		err := r.bed.pool.QueryRow(ctx, `SELECT count(*) FROM audit_log WHERE action = 'secret'`).Scan(&n)
		return append(fmt.Appendf(nil, "secret %d ", n), make([]byte, size)...), err
	})
	require.NoError(r, err)
	require.NoError(r, ctx.Err())
	r.Close()
	n := 0
	_, err = fmt.Sscanf(string(data), "secret %d ", &n)
	require.NoError(r, err)
	return n
}

// hits requires that the cache is used again, before long.
func (r *rig) hits() {
	r.Helper()
	require.Eventually(r, func() bool {
		r.clock.advance(query.MaxPause)
		r.count("question", 0)
		before := r.results(r.T)[0]
		r.count("question", 0)
		return r.results(r.T)[0] == before+1
	}, time.Minute, 10*time.Millisecond)
}

// said are the lines of the log, of which none may hold what was cached, or a key.
func (r *rig) said() []string {
	r.Helper()
	var lines []string
	for _, e := range r.logs.TakeAll() {
		line := fmt.Sprint(e.Level, " ", e.Message, " ", e.ContextMap())
		require.NotContains(r, line, "secret")
		require.NotContains(r, line, "auditsink:cache")
		lines = append(lines, line)
	}
	return lines
}

func (r *rig) do(err error) {
	r.Helper()
	require.NoError(r, err)
}

// TestCacheFaults: while Redis fails, every read is right and within its deadline, and Redis is asked only now and then. It is told once, and once that it is over.
func TestCacheFaults(t *testing.T) {
	for name, c := range map[string]struct {
		class     string
		fail, end func(*rig)
	}{
		"killed":               {"unreachable", func(r *rig) { r.do(r.redis.Kill()) }, func(r *rig) { r.do(r.redis.Start(r.Context())) }},
		"paused":               {"timeout", func(r *rig) { r.do(r.redis.Pause()) }, func(r *rig) { r.do(r.redis.Continue()) }},
		"slow":                 {"timeout", func(r *rig) { r.proxy.Latency(5*time.Second, 0) }, func(r *rig) { r.proxy.Heal() }},
		"cut off":              {"timeout", func(r *rig) { r.proxy.CutOff() }, func(r *rig) { r.proxy.Heal() }},
		"answers lost":         {"timeout", func(r *rig) { r.proxy.Silence(testkit.ToClient) }, func(r *rig) { r.proxy.Heal() }},
		"connections refused":  {"unreachable", func(r *rig) { r.do(r.proxy.Disable()) }, func(r *rig) { r.do(r.proxy.Enable(r.Context())) }},
		"answers cut":          {"unreachable", func(r *rig) { r.cutter.cut(7) }, func(r *rig) { r.cutter.cut(-1) }},
		"nothing but a hangup": {"unreachable", func(r *rig) { r.cutter.cut(0) }, func(r *rig) { r.cutter.cut(-1) }},
		"password": {"not permitted", func(r *rig) {
			r.do(r.admin.ConfigSet(r.Context(), "requirepass", "other").Err())
			r.do(r.admin.ClientKillByFilter(r.Context(), "TYPE", "normal").Err())
		}, func(r *rig) { r.do(r.admin.ConfigSet(r.Context(), "requirepass", "").Err()) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it waits
			r := newRig(t, 500*time.Millisecond)
			r.add()
			r.hits()
			require.Empty(t, r.said())
			r.deadline = 4 * time.Second
			before := r.results(t)
			c.fail(r)
			for range 12 {
				r.add()
				require.Equal(t, r.rows, r.count("question", 0))
			}
			after := r.results(t)
			require.Equal(t, before[3]+12, after[3], "all are counted as errors")
			stats := r.Stats()
			require.False(t, stats.Reachable)
			require.Equal(t, c.class, stats.LastError)
			require.Equal(t, r.clock.time(), stats.Since)
			said := r.said()
			require.Len(t, said, 1)
			require.Regexp(t, `^warn Redis can't be reached: .*`+c.class, said[0])

			r.clock.advance(query.MaxPause)
			require.Equal(t, r.rows, r.count("question", 0), "whoever finds out whether it is back")
			require.Empty(t, r.said())
			c.end(r)
			r.hits()
			require.Equal(t, r.rows, r.count("new question", 0))
			stats = r.Stats()
			require.True(t, stats.Reachable)
			require.Empty(t, stats.LastError)
			said = r.said()
			require.Len(t, said, 1)
			require.Contains(t, said[0], "info Redis is back")
		})
	}
}

// commands counts how often a client's commands are begun.
type commands struct{ n atomic.Int32 }

func (*commands) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		a.n.Add(1)
		return next(ctx, cmd)
	}
}

func (a *commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		a.n.Add(1)
		return next(ctx, cmds)
	}
}

// TestCacheLeavesRedisAlone: one that fails isn't asked by each read, but by one from time to time, and ever more rarely.
func TestCacheLeavesRedisAlone(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, s := newCache(t, connect(t, server.URL(), redisTimeout)), newSource("answer")
	count := &commands{}
	c.client.AddHook(count)
	require.NoError(t, server.Kill())
	for range 100 {
		c.read(t, s)
	}
	require.EqualValues(t, query.Patience, count.n.Load())
	for range 600 { // ten minutes
		c.clock.advance(time.Second)
		c.read(t, s)
		c.read(t, s)
	}
	require.Less(t, count.n.Load(), int32(query.Patience+30))
	require.Greater(t, count.n.Load(), int32(query.Patience+20))
}

// TestCacheWithinDeadline: a Redis that hangs takes a part of a read's time, even one that may hang for longer than a read.
func TestCacheWithinDeadline(t *testing.T) {
	r := newRig(t, time.Minute)
	r.add()
	r.hits()
	r.do(r.redis.Pause())
	r.deadline = 4 * time.Second
	for range query.Patience + 1 {
		r.add()
		require.Equal(t, r.rows, r.count("question", 0))
	}
	require.False(t, r.Stats().Reachable)

	// Whoever gives up before tells nothing about Redis.
	other := newCache(t, connect(t, r.redis.URL(), time.Minute))
	for range query.Patience + 1 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
		_, err := other.Do(ctx, key("question"), time.Hour, func(ctx context.Context) ([]byte, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	require.True(t, other.Stats().Reachable)
}

// TestCacheResets: connections that are reset one after the other cost nothing but an answer from the cache.
func TestCacheResets(t *testing.T) {
	r := newRig(t, redisTimeout)
	for range 30 {
		r.add()
		least := r.rows
		r.do(r.Invalidate(t.Context()))
		for range 3 {
			r.proxy.Reset()
			got := r.count("question", 0)
			require.GreaterOrEqual(t, got, least)
			require.LessOrEqual(t, got, r.rows)
			r.add()
		}
		r.hits()
	}
}

// TestCacheFull: a Redis that takes nothing more still has what it has.
func TestCacheFull(t *testing.T) {
	r := newRig(t, redisTimeout, "--maxmemory-policy", "noeviction")
	r.add()
	r.hits()
	r.do(r.admin.ConfigSet(t.Context(), "maxmemory", "1").Err())
	require.Equal(t, 1, r.count("question", 0))
	r.add()
	require.Equal(t, 1, r.count("question", 0), "a hit")
	for range 10 {
		r.add()
		require.Equal(t, r.rows, r.count("new question", 1000))
	}
	stats := r.Stats()
	require.True(t, stats.Reachable)
	require.False(t, stats.Storing)
	require.Equal(t, "full", stats.LastError)
	require.ErrorContains(t, r.Invalidate(t.Context()), "OOM")
	require.True(t, r.Stats().Pending)
	require.Equal(t, r.rows, r.count("question", 0), "what couldn't be invalidated isn't served")
	require.Len(t, r.said(), 1)

	r.do(r.admin.ConfigSet(t.Context(), "maxmemory", "0").Err())
	r.do(r.Invalidate(t.Context()))
	require.False(t, r.Stats().Storing, "it may come and go")
	r.clock.advance(query.Calm)
	r.hits()
	require.True(t, r.Stats().Storing)
	said := r.said()
	require.Len(t, said, 1)
	require.Contains(t, said[0], "info Redis stores again")
}

// TestCacheEvicts: a Redis that evicts what it wants, the generation too, only forgets.
func TestCacheEvicts(t *testing.T) {
	for _, policy := range []string{"allkeys-lru", "allkeys-random", "volatile-ttl"} {
		t.Run(policy, func(t *testing.T) {
			r := newRig(t, redisTimeout, "--maxmemory", "4mb", "--maxmemory-policy", policy)
			for round := range 10 {
				r.add()
				r.do(r.Invalidate(t.Context()))
				for n := range 40 {
					require.Equal(t, r.rows, r.count(fmt.Sprint("question", n), 100<<10), "round %d", round)
				}
			}
			require.Equal(t, 0, r.results(t)[3])
			info, err := r.admin.Info(t.Context(), "stats").Result()
			require.NoError(t, err)
			require.NotContains(t, info, "evicted_keys:0\r\n")
			require.Empty(t, r.said())
		})
	}
}

// TestCacheReadOnly: a Redis that became a replica stores nothing, until it leads again.
func TestCacheReadOnly(t *testing.T) {
	r := newRig(t, redisTimeout)
	primary := testkit.OwnRedis(t)
	host, port, err := net.SplitHostPort(primary.Address())
	require.NoError(t, err)
	r.add()
	r.hits()
	r.do(r.admin.Do(t.Context(), "REPLICAOF", host, port).Err())
	require.Eventually(t, func() bool {
		info, err := r.admin.Info(t.Context(), "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	}, time.Minute, 10*time.Millisecond)
	for range 5 {
		r.add()
		require.Equal(t, r.rows, r.count("question", 0))
	}
	stats := r.Stats()
	require.True(t, stats.Reachable)
	require.False(t, stats.Storing)
	require.Equal(t, "read-only", stats.LastError)
	require.ErrorContains(t, r.Invalidate(t.Context()), "READONLY")
	require.Len(t, r.said(), 1)
	r.do(r.admin.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err())
	r.do(r.Invalidate(t.Context()))
	r.clock.advance(query.Calm)
	r.hits()
	require.True(t, r.Stats().Storing)
	require.Len(t, r.said(), 1)
}

// TestCacheWatch: what becomes of Redis is known without a read, and what it couldn't be told is told when it is back.
func TestCacheWatch(t *testing.T) {
	r := newRig(t, time.Second)
	var last atomic.Pointer[query.CacheStats]
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		r.Watch(ctx, 10*time.Millisecond, func(s query.CacheStats) {
			r.clock.advance(time.Second)
			last.Store(&s)
		})
	})
	defer watching.Wait()
	defer stop()
	comes := func(what string, want func(query.CacheStats) bool) {
		t.Helper()
		require.Eventually(t, func() bool { s := last.Load(); return s != nil && want(*s) }, time.Minute, time.Millisecond, what)
	}
	comes("reachable", func(s query.CacheStats) bool { return s.Reachable })
	r.add()
	r.hits()
	r.do(r.redis.Pause())
	comes("not reachable", func(s query.CacheStats) bool { return !s.Reachable && s.LastError == "timeout" })
	r.add()
	require.Error(t, r.Invalidate(t.Context()))
	comes("pending", func(s query.CacheStats) bool { return s.Pending })
	r.do(r.redis.Continue())
	comes("told", func(s query.CacheStats) bool { return s.Reachable && !s.Pending })
	require.Equal(t, r.rows, r.count("question", 0))

	r.do(r.admin.ConfigSet(t.Context(), "maxmemory", "1").Err())
	comes("full", func(s query.CacheStats) bool { return s.Reachable && !s.Storing && s.LastError == "full" })
	r.do(r.admin.ConfigSet(t.Context(), "maxmemory", "0").Err())
	comes("stores", func(s query.CacheStats) bool { return s.Storing && s.LastError == "" })
}

// cutter is a proxy that ends connections when so many bytes have come from the server, or never (-1).
type cutter struct {
	address string
	after   atomic.Int64
	mu      sync.Mutex // guards pairs
	pairs   []io.Closer
}

func newCutter(t *testing.T, upstream string) *cutter {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &cutter{address: listener.Addr().String()}
	c.after.Store(-1)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := (&net.Dialer{}).DialContext(context.WithoutCancel(t.Context()), "tcp", upstream)
			if err != nil {
				_ = client.Close()
				continue
			}
			c.mu.Lock()
			c.pairs = append(c.pairs, client, server)
			c.mu.Unlock()
			hangUp := func() { _ = errors.Join(client.Close(), server.Close()) } // one of them may be closed
			all.Go(func() { defer hangUp(); _, _ = io.Copy(server, client) })    // it ends as it ends
			all.Go(func() {
				defer hangUp()
				from := io.Reader(server)
				if n := c.after.Load(); n >= 0 {
					from = io.LimitReader(server, n)
				}
				_, _ = io.Copy(client, from) // it ends as it ends
			})
		}
	})
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		c.hangUp()
		all.Wait()
	})
	return c
}

// cut ends the connections, and those to come after n bytes.
func (c *cutter) cut(n int64) {
	c.after.Store(n)
	c.hangUp()
}

func (c *cutter) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pairs {
		_ = p.Close() // it may be closed
	}
	c.pairs = nil
}
