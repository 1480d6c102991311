package main

import (
	"context"
	"fmt"
	"time"

	"auditsink/consumer"
	"auditsink/internal/postgres"
	"auditsink/metrics"
)

const (
	// healthInterval is how often /health looks at Kafka and the pools.
	healthInterval = 5 * time.Second
	// checkDeadline is for how long a pool's SELECT 1 is waited for, and slowCheck is from when on it is slow.
	checkDeadline, slowCheck = 3 * time.Second, time.Second
	// slowAcquire is from when on connections are waited for too long, on average.
	slowAcquire = 250 * time.Millisecond
	// brokenAfter is for how long Postgres or the brokers may be silent before that is critical, silentAfter before it needs attention.
	brokenAfter, silentAfter = 30 * time.Second, 20 * time.Second
	// standsAfter is for how long a worker may not be ready before that is critical: longer than a rebalance takes.
	standsAfter = 3 * time.Minute
)

// healthWatch tells /health how Kafka and the pools are.
type healthWatch struct {
	metrics *metrics.Metrics
	state   *readiness
	pools   []*watchedPool
	began   time.Time
	unready time.Time // since when the worker hasn't been ready, once it had started; zero while it is
}

// watchedPool is a pool, and what its last checks found.
type watchedPool struct {
	name     string
	setting  string // that says how many connections it may have
	pool     *postgres.Pool
	answered time.Time     // last, or was busy; when we began, until it has
	ever     bool          // it has answered
	took     time.Duration // the last check
	failed   error         // the last check, nil if it didn't
	busy     bool          // it failed since all connections were in use, which says nothing of the server
	waiting  int           // checks in a row that found somebody waiting
}

// newHealthWatch reports at once that nothing is known yet, so that /health doesn't call healthy what hasn't answered.
func newHealthWatch(m *metrics.Metrics, state *readiness) *healthWatch {
	w := &healthWatch{metrics: m, state: state, began: time.Now()}
	m.Report("kafka", kafkaHealth(nil, state.ready(), 0, 0, w.began, time.Time{}, w.began))
	m.Report("pool", poolsHealth(nil, w.began))
	return w
}

// watch adds a pool, before run.
func (w *healthWatch) watch(name, setting string, pool *postgres.Pool) {
	w.pools = append(w.pools, &watchedPool{name: name, setting: setting, pool: pool, answered: time.Now()})
}

// run reports until ctx ends.
func (w *healthWatch) run(ctx context.Context) {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for {
		for _, p := range w.pools {
			p.check(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		w.metrics.Report("pool", poolsHealth(w.pools, now))
		var status *consumer.Status
		if member := w.state.member.Load(); member != nil {
			s := member.Status()
			status = &s
		}
		problem := w.state.ready()
		switch {
		case problem == nil:
			w.unready = time.Time{}
		case status != nil && w.unready.IsZero():
			w.unready = now
		}
		sample, err := w.metrics.Sample(now)
		if err == nil { // otherwise the alert rules say so
			w.metrics.Report("kafka", kafkaHealth(status, problem, sample.Sum("consumer_lag_records"), sample.Max("consumer_lag_seconds"), w.began, w.unready, now))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *watchedPool) check(ctx context.Context) {
	begin := time.Now()
	p.waiting++
	if p.pool.State().Waiting == 0 {
		p.waiting = 0
	}
	p.failed = p.pool.Check(ctx, checkDeadline)
	p.took = time.Since(begin)
	s := p.pool.State()
	p.busy = p.failed != nil && s.Active >= s.Max
	if p.failed == nil || p.busy {
		p.answered, p.ever = time.Now(), true
	}
}

// poolsHealth is the component pool: its figures are by pool.
func poolsHealth(pools []*watchedPool, now time.Time) metrics.Component {
	c := metrics.Component{Status: metrics.Healthy, Details: map[string]any{}}
	if len(pools) == 0 {
		c.Status = metrics.Warning
		c.Details["state"] = "not looked at yet"
	}
	for _, p := range pools {
		one := p.health(p.pool.State(), now)
		c.Details[p.name] = one.Details
		c.Recommendations = append(c.Recommendations, one.Recommendations...)
		if one.Status.Rank() > c.Status.Rank() {
			c.Status = one.Status
		}
	}
	return c
}

func (p *watchedPool) health(s postgres.State, now time.Time) metrics.Component {
	c := metrics.Component{Status: metrics.Healthy, Details: map[string]any{
		"total": s.Total, "active": s.Active, "idle": s.Idle, "max": s.Max, "waiting": s.Waiting, "acquires": s.Acquires, "failures": s.Failures,
		"acquire_ms": milliseconds(s.MeanAcquire), "check_ms": milliseconds(p.took), "answers": p.failed == nil && p.ever,
	}}
	if p.ever {
		c.Details["answered_at"] = p.answered.UTC().Format(time.RFC3339)
	}
	advise := func(status metrics.Status, format string, args ...any) {
		if status.Rank() > c.Status.Rank() {
			c.Status = status
		}
		c.Recommendations = append(c.Recommendations, fmt.Sprintf("pool %s: "+format, append([]any{p.name}, args...)...))
	}
	switch silent := now.Sub(p.answered); {
	case p.busy:
		advise(metrics.Warning, "all %d connections have been in use for %s: raise %s, or find what keeps them busy", s.Max, checkDeadline, p.setting)
	case p.failed != nil && silent >= brokenAfter:
		advise(metrics.Critical, "Postgres has not answered for %s: see the log for why, and whether the server is up", silent.Round(time.Second))
	case p.failed != nil:
		advise(metrics.Warning, "Postgres doesn't answer: see the log for why")
	case !p.ever:
		c.Status = metrics.Warning // not asked yet
	case p.took > slowCheck:
		advise(metrics.Warning, "Postgres takes %s to answer a SELECT 1: see what keeps it, or the way to it, busy", p.took.Round(time.Millisecond))
	}
	// The average remembers what is over where connections are rarely asked for, so the check must have been slow too.
	if !p.busy && (p.waiting > 1 || s.MeanAcquire > slowAcquire && p.took > slowAcquire) {
		advise(metrics.Warning, "connections are waited for (%d wait, %s on average): raise %s, or find what keeps them busy", s.Waiting, s.MeanAcquire.Round(time.Millisecond), p.setting)
	}
	return c
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// kafkaHealth is the component kafka. status is nil while the worker starts; problem is what /readyz says, since unready.
func kafkaHealth(status *consumer.Status, problem error, lagRecords, lagSeconds float64, began, unready, now time.Time) metrics.Component {
	c := metrics.Component{Status: metrics.Healthy, Details: map[string]any{}}
	advise := func(s metrics.Status, format string, args ...any) {
		if s.Rank() > c.Status.Rank() {
			c.Status = s
		}
		c.Recommendations = append(c.Recommendations, "kafka: "+fmt.Sprintf(format, args...))
	}
	if problem != nil {
		c.Status = metrics.Warning
		c.Details["not_ready"] = problem.Error()
	}
	if status == nil {
		c.Status = metrics.Warning
		if waited := now.Sub(began); waited >= brokenAfter {
			advise(metrics.Critical, "the worker has been starting for %s (%v): see the log for what it waits for", waited.Round(time.Second), problem)
		}
		return c
	}
	c.Details["joined"] = status.Joined
	c.Details["lanes"] = status.Lanes
	c.Details["lanes_waiting"] = status.Waiting
	c.Details["lanes_halted"] = status.Halted
	c.Details["lag_records"] = lagRecords
	c.Details["lag_seconds"] = lagSeconds
	seen := began
	if !status.BrokersSeen.IsZero() {
		seen = status.BrokersSeen
		c.Details["brokers_answered_at"] = seen.UTC().Format(time.RFC3339)
	}
	switch silent := now.Sub(seen); {
	case silent >= silentAfter+brokenAfter:
		advise(metrics.Critical, "no broker has answered for %s: see the log for why, and whether the brokers are up", silent.Round(time.Second))
	case silent >= silentAfter:
		advise(metrics.Warning, "no broker has answered for %s", silent.Round(time.Second))
	}
	if status.Halted > 0 {
		advise(metrics.Critical, "%d lanes stand still until somebody acts: `auditsink lanes list` says why; mend that, then `auditsink lanes accept`", status.Halted)
	}
	if stands := now.Sub(unready); problem != nil && !unready.IsZero() && stands >= standsAfter {
		advise(metrics.Critical, "the worker has not taken in all of its lanes for %s: /readyz says which, and the log why", stands.Round(time.Second))
	}
	return c
}
