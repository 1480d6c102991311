package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/event"
	"auditsink/internal/performance"
	"auditsink/internal/postgres"
	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
	"auditsink/partitions"
)

// TestReportOfPools: connections that are held, waited for and not got, of both pools.
func TestReportOfPools(t *testing.T) {
	url := testkit.Postgres(t, 15)
	_, err := migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	cfg := config.Default()
	cfg.PostgresURL = config.Secret(url)
	cfg.PoolMinConns, cfg.PoolMaxConns, cfg.QueryMaxConns, cfg.PoolAcquireTimeout = 0, 3, 2, 300*time.Millisecond
	m := metrics.New("v1", event.Reasons())
	ingest, maintenance, err := workerPools(t.Context(), cfg, m)
	require.NoError(t, err)
	defer ingest.Close()
	reading, err := openReads(t.Context(), cfg, nil, m, zap.NewNop())
	require.NoError(t, err)
	defer reading.close()
	reports := newReports(cfg, maintenance, newOptimizer(cfg, maintenance, nil, m, zap.NewNop()), m, zap.NewNop())
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); reports.Run(ctx) }()
	defer func() { stop(); <-done }()
	var before performance.Report
	eventually(t, "the first window has begun", func() bool { before, err = reports.Report(t.Context()); return err == nil })
	require.InDelta(t, 0, before.Pool.Failures+before.Reads.Failures+before.Pool.Waiting, 0)

	held := []*pgxpool.Conn{}
	hold := func(pool *postgres.Pool, n int) {
		for range n {
			conn, err := pool.Acquire(t.Context())
			require.NoError(t, err)
			held = append(held, conn)
		}
	}
	defer func() {
		for _, conn := range held {
			conn.Release()
		}
	}()
	hold(ingest, 2)
	hold(reading.pool, 2)
	_, err = reading.pool.Acquire(t.Context())
	require.ErrorIs(t, err, postgres.ErrAcquireTimeout)
	waiter, enough := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for waiter.Err() == nil {
			if conn, err := reading.pool.Acquire(waiter); err == nil {
				conn.Release()
			}
		}
	}()
	eventually(t, "somebody waits", func() bool {
		r, err := reports.Report(t.Context())
		require.NoError(t, err)
		return r.Reads.Waiting == 1
	})
	r, err := reports.Report(t.Context())
	require.NoError(t, err)
	enough()
	<-gone
	require.Equal(t, []float64{3, 2}, []float64{r.Pool.Max, r.Reads.Max})
	require.InDelta(t, 2, r.Reads.Active, 0)
	require.GreaterOrEqual(t, r.Pool.Active, 2.0)
	require.GreaterOrEqual(t, r.Pool.Total, r.Pool.Active)
	require.GreaterOrEqual(t, r.Reads.Failures, 1.0)
	require.InDelta(t, 0, r.Pool.Failures, 0)
	require.EqualValues(t, 2, r.Pool.Acquires-before.Pool.Acquires)
	require.Less(t, r.Pool.AcquireMeanSeconds, 0.3)
}

// TestSwitchesOfTheSettings: each of AUDITSINK_OPTIMIZE_… turns its rule off, and no other; what the database's machine has, the report goes by.
func TestSwitchesOfTheSettings(t *testing.T) {
	pool := &postgres.Pool{}
	cfg := config.Default()
	require.Equal(t, performance.Switches{Cache: true, Analyze: true, Vacuum: true}, newOptimizer(cfg, pool, nil, nil, nil).On)
	cfg.OptimizeCache = false
	require.Equal(t, performance.Switches{Analyze: true, Vacuum: true}, newOptimizer(cfg, pool, nil, nil, nil).On)
	cfg.OptimizeCache, cfg.OptimizeAnalyze = true, false
	require.Equal(t, performance.Switches{Cache: true, Vacuum: true}, newOptimizer(cfg, pool, nil, nil, nil).On)
	cfg.OptimizeAnalyze, cfg.OptimizeVacuum = true, false
	require.Equal(t, performance.Switches{Cache: true, Analyze: true}, newOptimizer(cfg, pool, nil, nil, nil).On)
	cfg.DatabaseMemory, cfg.DatabaseCores, cfg.ReportInterval, cfg.SlowQuery = 3<<30, 7, time.Hour, time.Minute
	reports := newReports(cfg, pool, &performance.Optimizer{}, nil, nil)
	require.Equal(t, performance.Machine{MemoryBytes: 3 << 30, Cores: 7}, reports.Database)
	require.Equal(t, []any{time.Hour, time.Minute, 20, 4}, []any{reports.Every, reports.Slow, reports.PoolMaxConns, reports.ReadMaxConns})
}

// TestLeaderOptimizes: what the rules say is done in the leader's rounds, and not by one who was deposed.
func TestLeaderOptimizes(t *testing.T) {
	url := testkit.Postgres(t, 18)
	_, err := migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	cfg := config.Default()
	cfg.PostgresURL = config.Secret(url)
	m := metrics.New("v1", event.Reasons())
	pool, err := openDatabase(t.Context(), cfg, cfg.PostgresURL)
	require.NoError(t, err)
	defer pool.Close()
	_, err = partitions.Ensure(t.Context(), pool.Pool, time.Now(), partitions.Schedule{})
	require.NoError(t, err)
	statement(t, url, `DO $$ DECLARE p regclass; BEGIN FOR p IN SELECT relid FROM pg_partition_tree('audit_log') WHERE isleaf LOOP
		EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', p); END LOOP; END $$`) // it might analyze first
	statement(t, url, `INSERT INTO audit_log (timestamp, action, status) SELECT now(), 'a', 'success' FROM generate_series(1, 3000)`)
	eventually(t, "the statistics know", func() bool {
		return number(t, url, `SELECT sum(n_mod_since_analyze)::bigint FROM pg_stat_user_tables WHERE relname LIKE 'audit_log_2%'`) >= 3000
	})
	now := time.Now()
	optimizer := newOptimizer(cfg, pool, nil, m, zap.NewNop())
	optimizer.Now = func() time.Time { return now }
	w := &maintainer{
		work: maintenance(cfg, pool), watch: partitions.NewWatch(pool.Pool, m, schedule(cfg), retention(cfg)), optimizer: optimizer, metrics: m, log: zap.NewNop(),
	}
	term := partitions.Term{Holder: "me", Number: number(t, url, `UPDATE audit_leader SET term = term + 1, holder = 'me' RETURNING term`)}
	require.NoError(t, w.round(t.Context(), term))
	require.Zero(t, number(t, url, `SELECT count(*) FROM audit_optimization`))
	statement(t, url, `UPDATE audit_leader SET term = term + 1, holder = 'you'`)
	now = now.Add(10 * time.Minute)
	require.ErrorIs(t, w.round(t.Context(), term), partitions.ErrDeposed)
	require.Zero(t, number(t, url, `SELECT count(*) FROM audit_optimization`))
	require.NoError(t, w.round(t.Context(), partitions.Term{Holder: "you", Number: term.Number + 1}))
	require.EqualValues(t, 1, number(t, url, `SELECT count(*) FROM audit_optimization WHERE rule = 'analyze' AND state = 'done'`))
}

// TestWorkerReports: a worker's figures are in /v1/performance, in a line of its log, in /health and in what status prints; a cache that doesn't pay is cleared.
func TestWorkerReports(t *testing.T) {
	t.Parallel()
	broker, topic, databaseURL := testkit.Kafka(t), testkit.Name(t), testkit.Postgres(t, 18)
	broker.CreateTopic(t, topic, 1, nil)
	s := workerSettings(broker, topic, databaseURL).with(settings{"REPORT_INTERVAL": "2s", "REDIS_URL": testkit.OwnRedis(t).URL(), "DATABASE_MEMORY": "64GiB", "REDIS_TIMEOUT": "2s"})
	succeed(t, s, "migrate", "up")
	worker := start(t, s, "run")
	worker.says(t, `"first_report"|worker started`)
	publish(t, broker, topic, 500, 1)
	report := func() (r performance.Report) {
		code, body := worker.get(t, "/v1/performance")
		if code == http.StatusOK {
			require.NoError(t, json.Unmarshal([]byte(body), &r), body)
		}
		return r
	}
	seen := map[time.Time]float64{} // rows by window, however often it is asked for
	eventually(t, "the windows together have all rows", func() bool {
		r := report()
		seen[r.To] = r.Ingest.Rows + r.Ingest.Quarantined
		var all float64
		for _, rows := range seen {
			all += rows
		}
		return all >= 500 && r.Seconds > 1
	})
	r := report()
	require.InDelta(t, 2, r.Seconds, 1.9)
	require.Equal(t, "16GB", r.Advice[0].Proposed, "%v", r.Advice)
	require.Equal(t, 1.0, r.Ingest.Lanes)
	require.NotNil(t, r.Cache)
	require.Positive(t, r.Database.Partitions.Count)
	worker.says(t, `"msg":"performance report","seconds":[0-9.]+,"records_per_second":`)
	code, body := worker.get(t, "/health")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, `"performance": {`)
	require.Contains(t, body, "flush_p99_seconds")
	printed := succeed(t, s.with(settings{"HTTP_ADDR": worker.listens(t)}), "status", "--report")
	require.Contains(t, printed, "Performance of ")
	require.Contains(t, printed, "Advice on the server's settings")

	// Each question is another, so no look at the cache is a hit.
	asked := 0
	eventually(t, "the cache is cleared", func() bool {
		for range 150 {
			asked++
			code, body := worker.get(t, fmt.Sprintf("/v1/events?limit=1&from=2026-01-01T00:00:00.%06dZ", asked))
			require.Equal(t, http.StatusOK, code, body)
		}
		return number(t, databaseURL, `SELECT count(*) FROM audit_optimization WHERE rule = 'cache' AND state = 'done'`) == 1
	})
	require.InDelta(t, 1, worker.metric(t, "optimizations_total"), 0)
	eventually(t, "the report lists it", func() bool { all := report().Optimizations; return len(all) == 1 && all[0].Rule == "cache" })
	worker.stop(t)
}

// TestReportFromWorker: what isn't a report says what it is, and what to do.
func TestReportFromWorker(t *testing.T) {
	answer := func(http.ResponseWriter, *http.Request) {}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
	defer server.Close()
	cfg := config.Default()
	cfg.HTTPAddr, cfg.Token = strings.TrimPrefix(server.URL, "http://"), "s3cret"
	answer = func(w http.ResponseWriter, r *http.Request) {
		require.Equal(t, "/v1/performance Bearer s3cret", r.URL.Path+" "+r.Header.Get("Authorization"))
		require.NoError(t, json.NewEncoder(w).Encode(performance.Report{Worker: "it"}))
	}
	r, err := reportFromWorker(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, "it", r.Worker)
	for status, want := range map[int]string{
		http.StatusUnauthorized: "set AUDITSINK_TOKEN", http.StatusForbidden: "set AUDITSINK_TOKEN", http.StatusNotFound: "has no performance report: is it",
		http.StatusServiceUnavailable: "503 Service Unavailable: it is starting", http.StatusFound: "302 Found",
	} {
		answer = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			http.Error(w, "it is starting", status)
		}
		_, err := reportFromWorker(t.Context(), cfg)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "s3cret")
		require.Equal(t, map[bool]int{true: exitUsage, false: exitFailed}[status == http.StatusUnauthorized || status == http.StatusForbidden], exitCode(err), status)
	}
	answer = func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) } //nolint:errcheck // a test's
	_, err = reportFromWorker(t.Context(), cfg)
	require.ErrorContains(t, err, "read the performance report")
	server.Close()
	_, err = reportFromWorker(t.Context(), cfg)
	require.ErrorContains(t, err, "no worker answers at "+cfg.HTTPAddr+": start one")
}
