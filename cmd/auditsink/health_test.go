package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/consumer"
	"auditsink/internal/event"
	"auditsink/internal/postgres"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

// TestKafkaHealth: what the component kafka says, from what the consumer knows.
func TestKafkaHealth(t *testing.T) {
	began := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	well := consumer.Status{Joined: true, BrokersSeen: began.Add(time.Hour), Lanes: 4}
	for name, test := range map[string]struct {
		status  func(*consumer.Status)
		starts  bool
		problem error
		after   time.Duration
		stands  time.Duration
		want    metrics.Status
		advice  string
	}{
		"well":                           {after: time.Hour, want: metrics.Healthy},
		"just begun":                     {starts: true, problem: errors.New("starting"), want: metrics.Warning},
		"starting for long":              {starts: true, problem: errors.New("waiting for Kafka"), after: time.Minute, want: metrics.Critical, advice: "waiting for Kafka"},
		"not joined yet":                 {status: func(s *consumer.Status) { *s = consumer.Status{} }, problem: errors.New("not joined"), want: metrics.Warning},
		"never seen a broker":            {status: func(s *consumer.Status) { *s = consumer.Status{} }, problem: errors.New("not joined"), after: time.Minute, want: metrics.Critical, advice: "no broker has answered for 1m0s"},
		"brokers silent":                 {after: time.Hour + silentAfter, want: metrics.Warning, advice: "no broker has answered for 20s"},
		"brokers silent for long":        {after: time.Hour + time.Minute, want: metrics.Critical, advice: "no broker has answered for 1m0s"},
		"a batch that hangs":             {after: time.Hour, problem: errors.New("lane t/0: its batch has not been stored"), want: metrics.Warning},
		"a lane that has halted":         {status: func(s *consumer.Status) { s.Halted = 2 }, problem: errors.New("lane t/0: halted"), after: time.Hour, want: metrics.Critical, advice: "2 lanes stand still until somebody acts: `auditsink lanes list`"},
		"lanes that aren't there":        {status: func(s *consumer.Status) { s.Lanes = 0 }, after: time.Hour, want: metrics.Healthy},
		"a batch that hangs for minutes": {after: time.Hour, problem: errors.New("lane t/0: its batch has not been stored"), stands: standsAfter, want: metrics.Critical, advice: "not taken in all of its lanes for 3m0s: /readyz says which"},
		"a rebalance that takes long":    {after: time.Hour, problem: errors.New("not joined"), stands: standsAfter - time.Second, want: metrics.Warning},
		"a lane waits for a claim":       {status: func(s *consumer.Status) { s.Waiting = 1 }, problem: errors.New("lane t/0: waits"), after: time.Hour, want: metrics.Warning},
	} {
		t.Run(name, func(t *testing.T) {
			status := well
			if test.status != nil {
				test.status(&status)
			}
			given := &status
			if test.starts {
				given = nil
			}
			now, unready := began.Add(test.after), time.Time{}
			if test.stands > 0 {
				unready = now.Add(-test.stands)
			}
			c := kafkaHealth(given, test.problem, 7, 1.5, began, unready, now)
			require.Equal(t, test.want, c.Status)
			require.Contains(t, strings.Join(c.Recommendations, "\n"), test.advice)
			require.Equal(t, test.advice == "", len(c.Recommendations) == 0, c.Recommendations)
			if test.problem != nil {
				require.Equal(t, test.problem.Error(), c.Details["not_ready"])
			}
			if !test.starts {
				require.Equal(t, []any{status.Lanes, status.Halted, 7.0, 1.5}, []any{c.Details["lanes"], c.Details["lanes_halted"], c.Details["lag_records"], c.Details["lag_seconds"]})
			}
		})
	}
}

// TestPoolHealth: what the component pool says of one pool.
func TestPoolHealth(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		pool   watchedPool
		state  postgres.State
		want   metrics.Status
		advice string
	}{
		"well":            {watchedPool{ever: true, answered: now}, postgres.State{Max: 4, Waiting: 1}, metrics.Healthy, ""},
		"not asked yet":   {watchedPool{answered: now.Add(-time.Hour)}, postgres.State{}, metrics.Warning, ""},
		"fails":           {watchedPool{ever: true, answered: now.Add(-5 * time.Second), failed: errors.New("refused")}, postgres.State{}, metrics.Warning, "doesn't answer"},
		"fails for long":  {watchedPool{ever: true, answered: now.Add(-brokenAfter), failed: errors.New("refused")}, postgres.State{}, metrics.Critical, "has not answered for 30s"},
		"never answered":  {watchedPool{answered: now.Add(-brokenAfter), failed: errors.New("refused")}, postgres.State{}, metrics.Critical, "has not answered for 30s"},
		"slow to answer":  {watchedPool{ever: true, answered: now, took: 2 * time.Second}, postgres.State{}, metrics.Warning, "2s to answer"},
		"waited for":      {watchedPool{ever: true, answered: now, waiting: 2}, postgres.State{Waiting: 3}, metrics.Warning, "(3 wait, 0s on average): raise SETTING"},
		"waited for long": {watchedPool{ever: true, answered: now, took: time.Second}, postgres.State{MeanAcquire: time.Second}, metrics.Warning, "1s on average"},
		"it was":          {watchedPool{ever: true, answered: now}, postgres.State{MeanAcquire: time.Second}, metrics.Healthy, ""},
		"all in use":      {watchedPool{ever: true, answered: now, busy: true, waiting: 9, failed: errors.New("none came free")}, postgres.State{Max: 4, Active: 4}, metrics.Warning, "all 4 connections have been in use"},
	} {
		t.Run(name, func(t *testing.T) {
			test.pool.name, test.pool.setting = "ingest", "SETTING"
			c := test.pool.health(test.state, now)
			require.Equal(t, test.want, c.Status)
			require.Contains(t, strings.Join(c.Recommendations, "\n"), test.advice)
			require.Equal(t, test.advice == "", len(c.Recommendations) == 0, c.Recommendations)
			for _, figure := range []string{"total", "active", "idle", "max", "waiting", "acquire_ms", "check_ms", "failures", "acquires", "answers"} {
				require.Contains(t, c.Details, figure)
			}
		})
	}
}

// TestHealthOfPools: the worst of the pools is the component's, and a pool whose connections are all in use isn't a server that doesn't answer.
func TestHealthOfPools(t *testing.T) {
	state := &readiness{}
	state.set("starting")
	m := metrics.New("v1", event.Reasons())
	w := newHealthWatch(m, state)
	first := m.Health()
	require.Equal(t, metrics.Warning, first.Status, "what hasn't been looked at is not healthy")
	require.Equal(t, metrics.Warning, first.Components["kafka"].Status)
	require.Equal(t, metrics.Warning, first.Components["pool"].Status)

	pool, err := postgres.Open(t.Context(), postgres.Options{URL: testkit.Postgres(t, 18), MaxConns: 1})
	require.NoError(t, err)
	defer pool.Close()
	away, err := postgres.Open(t.Context(), postgres.Options{URL: "postgres://nobody@127.0.0.1:1/none", MaxConns: 1})
	require.NoError(t, err)
	defer away.Close()
	w.watch("ingest", "A", pool)
	w.watch("reads", "B", away)
	look := func(at time.Time) metrics.Component {
		for _, p := range w.pools {
			p.check(t.Context())
		}
		return poolsHealth(w.pools, at)
	}
	c := look(time.Now())
	require.Equal(t, metrics.Warning, c.Status)
	for name, answers := range map[string]bool{"ingest": true, "reads": false} {
		details, ok := c.Details[name].(map[string]any)
		require.True(t, ok)
		require.Equal(t, answers, details["answers"], name)
	}
	require.Equal(t, metrics.Critical, look(time.Now().Add(brokenAfter)).Status, "it never answered")

	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	w.pools[0].check(t.Context())
	c = w.pools[0].health(pool.State(), time.Now().Add(time.Hour))
	require.Equal(t, metrics.Warning, c.Status)
	require.Contains(t, c.Recommendations[0], "all 1 connections")
	conn.Release()
	w.pools[0].check(t.Context())
	require.Equal(t, metrics.Healthy, w.pools[0].health(pool.State(), time.Now()).Status)
}

// TestHealthWhileStarting: before Postgres and Kafka have answered /health doesn't call them healthy, and after a while it says what is waited for; then it recovers.
func TestHealthWhileStarting(t *testing.T) {
	t.Parallel()
	broker, server, topic := testkit.Kafka(t), testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18}), testkit.Name(t)
	broker.CreateTopic(t, topic, 1, nil)
	databaseURL, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	s := workerSettings(broker, topic, databaseURL)
	succeed(t, s, "migrate", "up")
	require.NoError(t, server.Stop())
	w := start(t, s.with(settings{"ALERT_INTERVAL": "200ms"}), "run")
	for _, name := range []string{"kafka", "pool"} {
		require.NotEqual(t, "healthy", component(t, w, name).status, name)
	}
	eventually(t, "an alert says so too", func() bool { return w.metric(t, `alert_active{alert="connection_failures"}`) == 1 })
	eventually(t, "health says what it waits for", func() bool { return component(t, w, "kafka").details["not_ready"] == "waiting for Postgres" })
	require.NoError(t, server.Restart(t.Context()))
	for _, name := range []string{"kafka", "pool"} {
		eventually(t, name+" is healthy", func() bool { return component(t, w, name).status == "healthy" })
	}
	require.EqualValues(t, 1, component(t, w, "kafka").details["lanes"])
	w.stop(t)
}
