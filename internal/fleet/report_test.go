package fleet_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/internal/event"
	"auditsink/internal/fleet"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

const (
	life  = 900 * time.Millisecond
	quick = 100 * time.Millisecond
)

// worker is a replica that reports.
type worker struct {
	t       *testing.T
	name    string
	fleet   *fleet.Fleet
	metrics *metrics.Metrics
	logs    *observer.ObservedLogs
	asked   atomic.Int64 // for its figures
	leads   atomic.Int64 // since when, in seconds; 0: it doesn't
	unknown atomic.Bool  // the database doesn't tell its identity
	stop    func()
}

// report starts a replica whose limit of a round trip is timeout, after prepare.
func report(t *testing.T, address, name string, timeout time.Duration, prepare ...func(*worker)) *worker {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	client := connect(t, address, redis.Options{DialerRetries: 1, DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute, PoolTimeout: time.Minute}) // no limits of its own
	w := &worker{t: t, name: name, metrics: metrics.New("v1", event.Reasons()), logs: logs, fleet: fleet.Open(client, "s1.2.3", "g", life, ample)}
	r := &fleet.Reporter{
		Client: client, Group: "g", Life: life, Timeout: timeout, Metrics: w.metrics, Log: zap.New(core),
		Identity: func(context.Context) (string, error) {
			if w.unknown.Load() {
				return "", errors.New("the database is away")
			}
			return "s1.2.3", nil
		},
		Figures: func(now time.Time) (fleet.Figures, error) {
			w.asked.Add(1)
			f := some(name)
			f.At, f.LeaderSince = now, time.Unix(w.leads.Load(), 0).UTC()
			f.Leader = w.leads.Load() > 0
			return f, nil
		},
		Complete: func(_ context.Context, s *fleet.Summary) { s.Quarantine = map[string]int64{"new": 4} },
	}
	for _, p := range prepare {
		p(w)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	w.stop = func() { cancel(); running.Wait() }
	t.Cleanup(w.stop)
	return w
}

// said are the lines of its log.
func (w *worker) said() (lines []string) {
	for _, e := range w.logs.All() {
		lines = append(lines, e.Level.String()+": "+strings.SplitN(e.Message, ",", 2)[0])
	}
	return lines
}

func (w *worker) replicas() float64 {
	w.t.Helper()
	s, err := w.metrics.Sample(time.Now())
	require.NoError(w.t, err)
	return s.Sum("fleet_replicas")
}

const (
	gone = "warn: the figures of this replica don't reach Redis"
	back = "info: the figures of this replica reach Redis again"
)

// TestLeadershipMoves: the leader alone tells of all; when another leads, nothing of the first is left; who stops is gone at once.
func TestLeadershipMoves(t *testing.T) {
	address := testkit.OwnRedis(t).Address()
	a, b := report(t, address, "a", ample), report(t, address, "b", ample)
	eventually(t, "both are there", func() bool { return len(read(t, a.fleet).Replicas) == 2 })
	require.Nil(t, read(t, a.fleet).Summary)
	require.Zero(t, a.replicas()+b.replicas())

	a.leads.Store(100)
	eventually(t, "a sums up", func() bool { return a.replicas() == 2 })
	s := read(t, a.fleet).Summary
	require.Equal(t, []any{"a", 2, 4, int64(18), map[string]int64{"new": 4}, map[string][]string{"lane_halted": {"a", "b"}}}, []any{s.Leader, s.Replicas, s.LanesOwned, s.LagRecords, s.Quarantine, s.Alerts})
	require.Zero(t, b.replicas())

	a.leads.Store(0)
	eventually(t, "nobody sums up", func() bool { return a.replicas() == 0 && read(t, a.fleet).Summary == nil })
	b.leads.Store(200)
	eventually(t, "b sums up", func() bool { return b.replicas() == 2 })
	a.leads.Store(100) // it doesn't know yet
	asked := a.asked.Load()
	eventually(t, "a has tried", func() bool { return a.asked.Load() > asked+2 })
	require.Equal(t, "b", read(t, a.fleet).Summary.Leader)

	a.stop()
	require.Equal(t, []string{"b"}, instances(read(t, b.fleet)), "at once")
	eventually(t, "b sees it", func() bool { return b.replicas() == 1 })
	require.Equal(t, "b", read(t, b.fleet).Summary.Leader)
	b.stop()
	v := read(t, b.fleet)
	require.Empty(t, v.Replicas)
	require.Nil(t, v.Summary)
	require.Zero(t, b.replicas())
	require.Empty(t, a.said())
	require.Empty(t, b.said())
}

// TestKilledReplica: it is counted until its life ends, and its name doesn't stay.
func TestKilledReplica(t *testing.T) {
	address := testkit.OwnRedis(t).Address()
	w := report(t, address, "w", ample)
	w.leads.Store(100)
	client := connect(t, address, redis.Options{})
	require.NoError(t, w.fleet.Publish(t.Context(), some("killed")))
	eventually(t, "both are counted", func() bool { return w.replicas() == 2 })
	eventually(t, "one is", func() bool { return w.replicas() == 1 })
	eventually(t, "the name is gone", func() bool {
		return client.ZCard(t.Context(), "auditsink:fleet:{s1.2.3:g}:replicas").Val() == 1
	})
}

// requireTurns requires of what a replica has said that Redis was gone and back in turns, and what came last. On a busy machine Redis may have been too slow for a moment before.
func requireTurns(t *testing.T, said []string, last string) {
	t.Helper()
	for i, s := range said {
		require.Equal(t, []string{gone, back}[i%2], s, said)
	}
	require.Equal(t, last, said[len(said)-1])
}

// TestRedisFaults: whatever happens to Redis, the replica goes on at its pace, says once that Redis is gone and once that it is back, and is there again by itself.
func TestRedisFaults(t *testing.T) {
	for name, fault := range map[string]struct {
		breaks, mends func(t *testing.T, s *testkit.RedisServer, p *testkit.Proxy)
	}{
		"paused": {
			func(t *testing.T, s *testkit.RedisServer, _ *testkit.Proxy) { require.NoError(t, s.Pause()) },
			func(t *testing.T, s *testkit.RedisServer, _ *testkit.Proxy) { require.NoError(t, s.Continue()) },
		},
		"killed, and restarted empty": {
			func(t *testing.T, s *testkit.RedisServer, _ *testkit.Proxy) { require.NoError(t, s.Kill()) },
			func(t *testing.T, s *testkit.RedisServer, _ *testkit.Proxy) { require.NoError(t, s.Start(t.Context())) },
		},
		"full": {
			func(t *testing.T, s *testkit.RedisServer, _ *testkit.Proxy) {
				require.NoError(t, connect(t, s.Address(), redis.Options{}).ConfigSet(t.Context(), "maxmemory", "1").Err())
			},
			func(t *testing.T, s *testkit.RedisServer, _ *testkit.Proxy) {
				require.NoError(t, connect(t, s.Address(), redis.Options{}).ConfigSet(t.Context(), "maxmemory", "0").Err())
			},
		},
		"slow by 5 s": {
			func(_ *testing.T, _ *testkit.RedisServer, p *testkit.Proxy) { p.Latency(5*time.Second, 0) },
			func(_ *testing.T, _ *testkit.RedisServer, p *testkit.Proxy) { p.Heal() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			pace := report(t, testkit.OwnRedis(t).Address(), "pace", ample) // one without a fault
			server := testkit.OwnRedis(t)
			proxy := testkit.OwnProxy(t, server.Address())
			w := report(t, proxy.Address(), "w", quick)
			w.leads.Store(100)
			eventually(t, "it is there", func() bool { return w.replicas() == 1 })
			fault.breaks(t, server, proxy)
			eventually(t, "it says so", func() bool { return len(w.said()) > 0 })
			asked, paced := w.asked.Load(), pace.asked.Load()
			eventually(t, "the other has made 12 rounds", func() bool { return pace.asked.Load() >= paced+12 })
			require.GreaterOrEqual(t, w.asked.Load(), asked+6, "it waits for nobody")
			requireTurns(t, w.said(), gone)
			require.Zero(t, w.replicas(), "it can't know")
			fault.mends(t, server, proxy)
			eventually(t, "it is there again", func() bool { return w.replicas() == 1 })
			require.Equal(t, []string{"w"}, instances(read(t, fleet.Open(connect(t, server.Address(), redis.Options{}), "s1.2.3", "g", life, ample))))
			requireTurns(t, w.said(), back)
			fault.breaks(t, server, proxy)
			paced = pace.asked.Load()
			w.stop()
			require.Less(t, pace.asked.Load(), paced+8, "nor does its end")
			fault.mends(t, server, proxy)
		})
	}
}

// TestIdentityLater: the database may be away at first.
func TestIdentityLater(t *testing.T) {
	w := report(t, testkit.OwnRedis(t).Address(), "w", ample, func(w *worker) { w.unknown.Store(true) })
	eventually(t, "it says so", func() bool { return len(w.said()) > 0 })
	require.Zero(t, w.asked.Load())
	w.unknown.Store(false)
	eventually(t, "it is there", func() bool { return len(read(t, w.fleet).Replicas) == 1 })
	eventually(t, "it says so", func() bool { return len(w.said()) > 1 })
	require.Equal(t, []string{gone, back}, w.said())
}
