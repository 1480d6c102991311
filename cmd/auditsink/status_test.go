package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/internal/fleet"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

// statusOf runs status --json, which has to succeed, and reads it.
func statusOf(t *testing.T, s settings) status {
	t.Helper()
	var got status
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "status", "--json")), &got))
	return got
}

// listens is where a worker answers HTTP.
func (p *process) listens(t *testing.T) string {
	t.Helper()
	return p.says(t, `"metrics":"http://([^"]+)/metrics"`)
}

func (p *process) pid() string { return fmt.Sprintf("/%d/", p.cmd.Process.Pid) }

// wholeFleet requires what must hold of a fleet whose lanes are all taken: each lane is one replica's, and the sums are those of the parts.
func wholeFleet(t *testing.T, s status, workers ...*process) {
	t.Helper()
	require.Equal(t, "redis", s.Replicas.Source)
	require.Len(t, s.Replicas.Items, len(workers))
	leaders, owned := 0, 0
	for i, f := range s.Replicas.Items {
		require.True(t, slices.ContainsFunc(workers, func(p *process) bool { return strings.Contains(f.Instance, p.pid()) && f.HTTPAddr == p.listens(t) }), f.Instance)
		if f.Leader {
			leaders++
			require.True(t, strings.HasPrefix(s.Leader.Holder, f.Owner+"/"), "%s leads by Postgres, %s by its own figures", s.Leader.Holder, f.Instance)
		}
		require.True(t, i == 0 || s.Replicas.Items[i-1].Instance < f.Instance)
		owned += f.LanesOwned
	}
	require.Equal(t, 1, leaders)
	require.Equal(t, []int{len(workers), len(workers), len(s.Lanes.Items), owned}, []int{s.Totals.Replicas, s.Totals.Ready, owned, s.Totals.LanesOwned})
	for _, l := range s.Lanes.Items {
		require.True(t, strings.HasPrefix(l.Instance, l.Owner+"/"), "%s: audit_lane says %s, Redis %s", l.Name(), l.Owner, l.Instance)
	}
}

// settled tells whether a fleet has come to rest: all lanes are taken, by these many replicas, one of which leads.
func settled(s status, workers, lanes int) bool {
	for _, l := range s.Lanes.Items {
		if l.State != laneActive || l.Lag == nil || !strings.HasPrefix(l.Instance, l.Owner+"/") {
			return false
		}
	}
	led := slices.IndexFunc(s.Replicas.Items, func(f fleet.Figures) bool { return f.Leader && strings.HasPrefix(s.Leader.Holder, f.Owner+"/") })
	// What /health doesn't know yet it doesn't call healthy.
	return s.Health == metrics.Healthy && len(s.Replicas.Items) == workers && s.Totals.Ready == workers && s.Totals.LanesOwned == lanes && len(s.Lanes.Items) == lanes && led >= 0 && s.Leader.Expired == 0
}

// TestStatus: three workers, of which the leader is killed and another stops.
func TestStatus(t *testing.T) {
	t.Parallel() // most of it waits until Kafka and Redis give the dead up
	const lanes = 6
	broker, databaseURL, topic, redis := testkit.Kafka(t), testkit.Postgres(t, 18), testkit.Name(t), testkit.OwnRedis(t)
	broker.CreateTopic(t, topic, lanes, nil)
	s := workerSettings(broker, topic, databaseURL).with(settings{
		"REDIS_URL": redis.URL(), "KAFKA_SESSION_TIMEOUT": "6s", "LEADER_LEASE": "2s", "POOL_MAX_CONNS": "4", "REDIS_TIMEOUT": "5s",
	})
	succeed(t, s, "migrate", "up")
	got := statusOf(t, s)
	require.Equal(t, "redis", got.Replicas.Source)
	require.Empty(t, got.Replicas.Items)
	require.EqualValues(t, "critical", got.Health)
	require.Contains(t, got.Problems[0].Text, "no replica")

	var workers []*process
	for range 3 {
		workers = append(workers, start(t, s, "run"))
	}
	publish(t, broker, topic, 600, 1)
	arrived(t, databaseURL, 600)
	statement(t, databaseURL, `INSERT INTO audit_quarantine (lane_id, lane_offset, reason, state) VALUES (1, 1, 'empty', 'new'), (1, 2, 'empty', 'new'), (1, 3, 'too_deep', 'new'), (1, 4, 'empty', 'discarded')`)
	statement(t, databaseURL, `INSERT INTO audit_gap (lane_id, kind, from_offset, to_offset) VALUES (1, 'retention', 10, 15), (1, 'retention', 20, 30)`)
	eventually(t, "all lanes are taken", func() bool { return settled(statusOf(t, s), 3, lanes) })
	got = statusOf(t, s)
	wholeFleet(t, got, workers...)
	require.EqualValues(t, "healthy", got.Health, got.Problems)
	require.Empty(t, got.Problems)
	require.Empty(t, got.Notes)
	require.Zero(t, got.Totals.LagRecords)
	for i, l := range got.Lanes.Items {
		require.Equal(t, []any{topic, int32(i), int64(100), topic}, []any{l.Topic, l.Partition, *l.Position, l.Group})
	}
	require.Equal(t, 7, got.Partitions.Count)
	require.Equal(t, map[string]int64{"new": 3, "redriven": 0, "discarded": 1}, got.Quarantine.States)
	require.Equal(t, map[string]int64{"empty": 2, "too_deep": 1}, got.Quarantine.Reasons)
	require.EqualValues(t, 2, got.Gaps.Items[0].Gaps)
	require.EqualValues(t, 15, got.Gaps.Items[0].Offsets)
	requireShape(t, succeed(t, s, "status", "--json"))

	text := succeed(t, s, "status")
	require.Regexp(t, `^auditsink at \S+Z, consumer group `+topic+`: HEALTHY\n\nreplicas: 3, 3 ready; lanes: 6 owned, 0 halted; lag: 0 records, 0.0s; [\d.]+ records/s, [\d.]+ rows/s\nleader: \S+ since \S+Z \(\S+\)\n`, text)
	require.Regexp(t, `(?m)^REPLICA +VERSION +UP +READY +LEADS +LANES +HALTED +LAG +BEHIND +RECORDS/S +ROWS/S +FLUSH P95 +BUFFERED +MEMORY +HEALTH +ALERTS$`, text)
	require.Regexp(t, `(?m)^\S+/\d+/[A-Z2-7]{8} +dev +\S+ +yes +yes +2 +0 +0 +0\.0s .* MB +healthy +-$`, text)
	require.Regexp(t, `(?m)^LANE +STATE +POSITION +LAG +BEHIND +OWNER$`, text)
	require.Regexp(t, `(?m)^`+topic+`/5 +active +100 +0 +0\.0s +\S+/\d+$`, text)
	require.Regexp(t, `(?m)^partitions +7, ready until \S+Z; next to go: audit_log_\S+, \S+ \(not removed while AUDITSINK_RETENTION_ENFORCE is false\)$`, text)
	require.Regexp(t, `(?m)^quarantine +1 discarded, 3 new, 0 redriven; new: empty 2, too_deep 1$`, text)
	require.Regexp(t, `(?m)^gaps +retention 2 \(15 offsets, the last at \S+Z\)$`, text)
	require.Regexp(t, `(?m)^alerts +none\n$`, text)
	require.EqualValues(t, 3, workers[0].metric(t, "fleet_replicas")+workers[1].metric(t, "fleet_replicas")+workers[2].metric(t, "fleet_replicas"), "the leader alone counts them")

	victim := slices.IndexFunc(workers, func(p *process) bool { return p.metric(t, "leader") == 1 })
	term := got.Leader.Holder
	require.Contains(t, term, workers[victim].pid())
	workers[victim].kill()
	left := slices.Delete(slices.Clone(workers), victim, victim+1)
	eventually(t, "the others have its lanes", func() bool { return settled(statusOf(t, s), 2, lanes) })
	got = statusOf(t, s)
	wholeFleet(t, got, left...)
	require.NotEqual(t, term, got.Leader.Holder)
	eventually(t, "the new leader counts", func() bool { return left[0].metric(t, "fleet_replicas")+left[1].metric(t, "fleet_replicas") == 2 })

	left[0].stop(t)
	got = statusOf(t, s)
	require.Len(t, got.Replicas.Items, 1, "at once")
	require.Contains(t, got.Replicas.Items[0].Instance, left[1].pid())
	eventually(t, "the last has all lanes", func() bool { return settled(statusOf(t, s), 1, lanes) })

	// Nobody has them, and it shows.
	left[1].stop(t)
	got = statusOf(t, s)
	require.Empty(t, got.Replicas.Items)
	require.EqualValues(t, "critical", got.Health)
	for _, l := range got.Lanes.Items {
		require.Equal(t, laneUnowned, l.State)
	}
	require.Regexp(t, `(?m)^`+topic+`/0 +unowned +100 +- +- +NOBODY \(last: \S+\)$`, succeed(t, s, "status"))
}

// requireShape: what programs may rely on.
func requireShape(t *testing.T, text string) {
	t.Helper()
	golden, err := os.ReadFile("testdata/status_shape.txt")
	require.NoError(t, err)
	var v any
	require.NoError(t, json.Unmarshal([]byte(text), &v))
	paths := map[string]bool{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			switch path { // maps of names
			case ".totals.alerts", ".replicas.items[].components", ".quarantine.by_state", ".quarantine.new_by_reason":
				paths[path+" map"] = true
				return
			}
			for k, member := range v {
				walk(path+"."+k, member)
			}
		case []any:
			paths[path+"[]"] = true
			for _, member := range v {
				walk(path+"[]", member)
			}
		case nil:
			t.Errorf("%s is null", path)
		default:
			paths[fmt.Sprintf("%s %T", path, v)] = true
		}
	}
	walk("", v)
	require.Equal(t, string(golden), strings.Join(slices.Sorted(maps.Keys(paths)), "\n")+"\n")
}

// TestStatusSources: whatever is away, the rest is shown, in time, and it says what is missing.
func TestStatusSources(t *testing.T) {
	t.Parallel()
	broker, topic, redis := testkit.Kafka(t), testkit.Name(t), testkit.OwnRedis(t)
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15})
	databaseURL, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	broker.CreateTopic(t, topic, 2, nil)
	plainly := workerSettings(broker, topic, databaseURL).with(settings{"POOL_RETRY_ATTEMPTS": "1", "REDIS_TIMEOUT": "1s"})
	s := plainly.with(settings{"REDIS_URL": redis.URL()})
	succeed(t, s, "migrate", "up")
	p := start(t, s, "run")
	publish(t, broker, topic, 20, 1)
	arrived(t, databaseURL, 20)
	s["HTTP_ADDR"], plainly["HTTP_ADDR"] = p.listens(t), p.listens(t)
	eventually(t, "it is at rest", func() bool { return settled(statusOf(t, s), 1, 2) })

	fromWorker := func(got status, why string) {
		t.Helper()
		require.Equal(t, "worker", got.Replicas.Source)
		require.Len(t, got.Notes, 1)
		require.Contains(t, got.Notes[0], why)
		require.Len(t, got.Replicas.Items, 1)
		f := got.Replicas.Items[0]
		require.Equal(t, []any{p.listens(t), true, true, 2, "dev"}, []any{f.Instance, f.Ready, f.Leader, f.LanesOwned, f.Version})
		require.Len(t, f.Lanes, 2)
		require.Contains(t, f.Components, "partitions")
		require.Len(t, got.Lanes.Items, 2)
		for _, l := range got.Lanes.Items {
			require.Equal(t, laneActive, l.State)
			require.Equal(t, int64(10), *l.Position)
			require.Zero(t, l.Lag.Records)
		}
	}
	t.Run("no Redis", func(t *testing.T) {
		fromWorker(statusOf(t, plainly), "AUDITSINK_REDIS_URL is not set")
		require.Regexp(t, `(?m)^  note: the figures are those of one worker`, succeed(t, plainly, "status"))
	})
	t.Run("Redis paused", func(t *testing.T) {
		require.NoError(t, redis.Pause())
		got := statusOf(t, s)
		require.NoError(t, redis.Continue())
		fromWorker(got, "timeout")
	})
	t.Run("Redis killed, restarted empty", func(t *testing.T) {
		require.NoError(t, redis.Kill())
		fromWorker(statusOf(t, s), "connection refused")
		require.NoError(t, redis.Start(t.Context()))
		eventually(t, "it is there again", func() bool { return settled(statusOf(t, s), 1, 2) })
	})
	t.Run("no worker", func(t *testing.T) {
		got := statusOf(t, plainly.with(settings{"HTTP_ADDR": "127.0.0.1:1"}))
		require.Empty(t, got.Replicas.Source)
		require.Contains(t, got.Replicas.Error, "ask the worker at 127.0.0.1:1")
		require.Len(t, got.Lanes.Items, 2)
		require.Equal(t, 7, got.Partitions.Count)
		got = statusOf(t, plainly.with(settings{"HTTP_ADDR": strings.TrimPrefix(broker.Brokers()[0], "http://")}))
		require.Empty(t, got.Replicas.Source, "something else answers there")
	})
	t.Run("the report", func(t *testing.T) {
		require.Contains(t, succeed(t, s, "status", "--report"), "rows")
		var report map[string]any
		require.NoError(t, json.Unmarshal([]byte(succeed(t, s, "status", "--report", "--json")), &report))
		require.NotEmpty(t, report)
		code, _, errs := execute(t, s.with(settings{"HTTP_ADDR": "127.0.0.1:1"}), "status", "--report")
		require.Equal(t, 1, code)
		require.Contains(t, errs, "no worker answers at 127.0.0.1:1")
		code, _, errs = execute(t, s, "status", "--report", "--watch")
		require.Equal(t, 2, code)
		require.Contains(t, errs, "don't go together")
	})
	t.Run("Postgres paused", func(t *testing.T) {
		require.NoError(t, server.Pause())
		got := statusOf(t, s)
		require.NoError(t, server.Continue())
		require.Equal(t, "redis", got.Replicas.Source)
		require.Len(t, got.Replicas.Items, 1)
		require.Equal(t, "redis", got.Lanes.Source)
		require.NotEmpty(t, got.Lanes.Error)
		require.NotEmpty(t, got.Gaps.Error)
	})
	t.Run("Postgres away", func(t *testing.T) {
		require.NoError(t, server.Stop())
		defer func() { require.NoError(t, server.Restart(t.Context())) }()
		got := statusOf(t, s)
		require.Equal(t, "redis", got.Replicas.Source)
		require.Len(t, got.Replicas.Items, 1)
		require.Contains(t, got.Lanes.Error, "Postgres can't be reached")
		require.Equal(t, []string{"redis", "redis", "redis", "redis"}, []string{got.Lanes.Source, got.Leader.Source, got.Partitions.Source, got.Quarantine.Source})
		require.Len(t, got.Lanes.Items, 2)
		require.Equal(t, int64(10), *got.Lanes.Items[0].Position)
		require.Contains(t, got.Leader.Holder, p.pid())
		require.False(t, got.Partitions.ReadyUntil.IsZero())
		require.Empty(t, got.Gaps.Source)
		require.NotEmpty(t, got.Gaps.Error)

		got = statusOf(t, plainly)
		require.Equal(t, []string{"worker", "worker", "worker"}, []string{got.Replicas.Source, got.Lanes.Source, got.Leader.Source})
		text := succeed(t, plainly, "status")
		require.Regexp(t, `(?m)^`+topic+`/1 +active +- +0 +0\.0s +127\.0\.0\.1:\d+$`, text)

		code, out, errs := execute(t, plainly.with(settings{"HTTP_ADDR": "127.0.0.1:1"}), "status")
		require.Equal(t, 1, code)
		require.Contains(t, out, "Postgres can't be reached")
		require.Contains(t, errs, "nothing could be read")
		code, out, _ = execute(t, plainly.with(settings{"HTTP_ADDR": "127.0.0.1:1", "POSTGRES_URL": ""}), "status", "--json")
		require.Equal(t, 1, code)
		var none status
		require.NoError(t, json.Unmarshal([]byte(out), &none))
		for _, why := range []string{none.Lanes.Error, none.Leader.Error, none.Partitions.Error, none.Quarantine.Error, none.Gaps.Error} {
			require.Equal(t, "AUDITSINK_POSTGRES_URL is not set", why)
		}
		require.NotEmpty(t, none.Replicas.Error)
	})
	eventually(t, "all is well again", func() bool { return settled(statusOf(t, s), 1, 2) })
	require.NotContains(t, p.errs.String(), "pool.go", "the client's own log")
}

// TestStatusApart: two databases, and two groups of one, share a Redis and see nothing of each other.
func TestStatusApart(t *testing.T) {
	t.Parallel()
	broker, redis := testkit.Kafka(t), testkit.OwnRedis(t)
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18})
	var all []settings
	var workers []*process
	database := func() string {
		u, err := server.CreateDatabase(t.Context())
		require.NoError(t, err)
		return u
	}
	first, second := database(), database()
	group := testkit.Name(t)
	for i, databaseURL := range []string{first, second, first} {
		topic := testkit.Name(t)
		broker.CreateTopic(t, topic, int32(i+1), nil)
		s := workerSettings(broker, topic, databaseURL).with(settings{"REDIS_URL": redis.URL(), "REDIS_TIMEOUT": "5s", "KAFKA_GROUP": group, "POOL_MAX_CONNS": "4", "POOL_RETRY_ATTEMPTS": "1"})
		if i == 2 {
			s["KAFKA_GROUP"] = group + "-other"
		}
		succeed(t, s, "migrate", "up")
		all, workers = append(all, s), append(workers, start(t, s, "run"))
		workers[i].says(t, `worker started`)
	}
	ours := func(s settings, p *process) bool {
		got := statusOf(t, s)
		require.LessOrEqual(t, len(got.Replicas.Items), 1)
		return len(got.Replicas.Items) == 1 && strings.Contains(got.Replicas.Items[0].Instance, p.pid())
	}
	for i, s := range all {
		eventually(t, "it sees its own worker", func() bool { return ours(s, workers[i]) })
	}
	// Where the database can't be asked, its address tells.
	require.NoError(t, server.Stop())
	for i, s := range all {
		require.True(t, ours(s, workers[i]))
	}
	// Without one there is no telling, unless there is only one.
	got := statusOf(t, all[2].with(settings{"POSTGRES_URL": ""}))
	require.Len(t, got.Replicas.Items, 1)
	require.Contains(t, got.Notes[0], "the only ones of consumer group")
	code, out, _ := execute(t, all[0].with(settings{"POSTGRES_URL": "", "HTTP_ADDR": "127.0.0.1:1"}), "status")
	require.Equal(t, 1, code)
	require.Contains(t, out, "Redis has replicas of 2 databases")
	require.NoError(t, server.Restart(t.Context()))
}

// TestStatusWatch: it goes on until Ctrl-C, and ends well.
func TestStatusWatch(t *testing.T) {
	t.Parallel()
	s := settings{"POSTGRES_URL": testkit.Postgres(t, 18), "HTTP_ADDR": "127.0.0.1:1"}
	succeed(t, s, "migrate", "up")
	interrupted := func(p *process) {
		t.Helper()
		require.NoError(t, p.cmd.Process.Signal(syscall.SIGINT))
		require.Zero(t, p.wait(t), p.errs.String())
		require.Empty(t, p.errs.String())
	}
	path := t.TempDir() + "/out"
	written := func() string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
	for _, c := range []struct {
		args []string
		each string
	}{{[]string{"status", "--watch", "--interval", "100ms"}, "auditsink at "}, {[]string{"status", "--watch", "--interval", "100ms", "--json"}, `{"at":`}} {
		out, err := os.Create(path)
		require.NoError(t, err)
		p := startTo(t, s, out, c.args...)
		eventually(t, "three looks", func() bool { return strings.Count(written(), c.each) >= 3 })
		interrupted(p)
		require.NoError(t, out.Close())
		require.NotContains(t, written(), "\x1b", "a file is no terminal")
		require.True(t, strings.HasSuffix(written(), "\n"))
	}
	for line := range strings.Lines(written()) {
		require.NoError(t, json.Unmarshal([]byte(line), &status{}))
	}
	code, _, errs := execute(t, s, "status", "--watch", "--interval", "1ms")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "--interval is below 100ms")
}
