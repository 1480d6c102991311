package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/fleet"
	"auditsink/internal/postgres"
	"auditsink/metrics"
	"auditsink/sink"
)

const (
	// tallyEvery is how often the leader counts the quarantined records for its summary, and tallyWithin how long that may take.
	tallyEvery  = time.Minute
	tallyWithin = 3 * time.Second
)

// reportFigures is the part of a worker that tells the other replicas about it through Redis; nothing where there is none.
func reportFigures(cfg config.Config, client *redis.Client, pool *postgres.Pool, httpAddr string, m *metrics.Metrics, state *readiness, log *zap.Logger) func(context.Context) {
	if client == nil {
		return func(context.Context) {}
	}
	r := &replica{
		pool: pool, metrics: m, state: state, before: metrics.Sample{At: time.Now()},
		about: fleet.Figures{
			Instance: owner() + "/" + rand.Text()[:8], Owner: owner(), Database: databaseName(pool), Group: cfg.KafkaGroup, Version: version,
			Started: time.Now().UTC(), HTTPAddr: httpAddr,
		},
	}
	reporter := &fleet.Reporter{
		Client: client, Group: cfg.KafkaGroup, Life: fleet.Life, Timeout: cfg.RedisTimeout,
		Identity: pool.Identity, Figures: r.figures, Complete: r.complete, Metrics: m, Log: log,
	}
	return reporter.Run
}

// databaseName is where a pool leads to, without the user: host:port/name.
func databaseName(pool *postgres.Pool) string {
	c := pool.Config().ConnConfig
	return fmt.Sprintf("%s:%d/%s", c.Host, c.Port, c.Database)
}

// replica is this worker, as it tells others of itself.
type replica struct {
	pool    *postgres.Pool
	metrics *metrics.Metrics
	state   *readiness
	about   fleet.Figures  // what stays
	before  metrics.Sample // the last one
	tally   fleet.Summary  // the last count of what is in quarantine
	tallied time.Time      // when it was tried last
}

// figures are those of now.
func (r *replica) figures(now time.Time) (fleet.Figures, error) {
	sample, err := r.metrics.Sample(now)
	if err != nil {
		return fleet.Figures{}, err
	}
	f := r.about
	if err := r.state.ready(); err != nil {
		f.NotReady = err.Error()
	}
	f.Ready = f.NotReady == ""
	f.Lanes = []fleet.Lane{}
	if member := r.state.member.Load(); member != nil {
		for _, l := range member.Lanes() {
			lane := fleet.Lane{Topic: l.Topic, Partition: l.Partition, Halted: l.Halted}
			if l.Position >= 0 {
				lane.Position = &l.Position
			}
			f.Lanes = append(f.Lanes, lane)
		}
	}
	f.Measure(r.before, sample)
	f.Judge(r.metrics.Health())
	r.before = sample
	return f, nil
}

// complete adds what the database knows.
func (r *replica) complete(ctx context.Context, s *fleet.Summary) {
	if until := r.before.Sum("partitions_ready_until_timestamp_seconds"); until > 0 {
		s.ReadyUntil = time.Unix(int64(until), 0).UTC()
	}
	if time.Since(r.tallied) >= tallyEvery {
		ctx, cancel := context.WithTimeout(ctx, tallyWithin)
		defer cancel()
		r.tallied = time.Now()
		t, err := sink.TallyQuarantine(ctx, r.pool)
		r.tally.Trouble = ""
		if err != nil {
			r.tally.Trouble = err.Error()
		} else {
			r.tally.Quarantine, r.tally.Reasons, r.tally.CountedAt = t.States, t.Reasons, r.tallied.UTC()
		}
	}
	s.Quarantine, s.Reasons, s.CountedAt, s.Trouble = r.tally.Quarantine, r.tally.Reasons, r.tally.CountedAt, r.tally.Trouble
}
