package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/metrics"
	"auditsink/partitions"
)

// countInterval is how often every worker, leading or not, looks at the table partitions for its gauges.
const countInterval = time.Minute

// maintain takes part in the election of the leader, and maintains the table partitions whenever this worker leads, until ctx ends; then another
// worker takes over at once. It also keeps the gauges about table partitions. Nothing that happens to it ends the worker.
func maintain(ctx context.Context, cfg config.Config, pool *postgres.Pool, m *metrics.Metrics, log *zap.Logger) error {
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		keepCounting(ctx, min(countInterval, cfg.MaintenanceInterval), pool, m, log)
	}()
	defer func() { <-counted }()
	maintainer := &maintainer{cfg: cfg, pool: pool, metrics: m, log: log}
	if err := lease(cfg, m, log).Lead(ctx, pool.Pool, maintainer.lead); err != nil {
		return fmt.Errorf("maintain the table partitions: %w", err)
	}
	return nil
}

// lease is this worker's part in the election, with what logs and metrics tell of it.
func lease(cfg config.Config, m *metrics.Metrics, log *zap.Logger) partitions.Lease {
	about := func(term partitions.Term) []zap.Field {
		return []zap.Field{zap.Int64("term", term.Number), zap.String("holder", term.Holder)}
	}
	return partitions.Lease{
		Duration: cfg.LeaderLease,
		Holder:   owner(),
		Began: func(term partitions.Term) {
			m.Leader.Set(1)
			m.LeaderSince.Set(float64(term.Since.Unix()))
			log.Info("leading: this worker maintains the table partitions", about(term)...)
		},
		Ended: func(term partitions.Term, err error) {
			m.Leader.Set(0)
			m.LeaderSince.Set(0)
			if err != nil {
				log.Warn("leading no more", append(about(term), zap.Error(err))...)
				return
			}
			log.Info("leading no more: handed over", about(term)...)
		},
		Trouble: func(err error) {
			if err != nil {
				log.Warn("the leader's lease can't be asked for, trying again", zap.Error(postgres.Explain(err)))
				return
			}
			log.Info("the leader's lease can be asked for again")
		},
	}
}

// maintainer is the work of the leader.
type maintainer struct {
	cfg     config.Config
	pool    *postgres.Pool
	metrics *metrics.Metrics
	log     *zap.Logger
}

// lead makes a round at once and then one every AUDITSINK_MAINTENANCE_INTERVAL, until ctx ends or the term does. A round that fails is made again at
// its next time: partitions are there for months ahead.
func (w *maintainer) lead(ctx context.Context, term partitions.Term) error {
	tick := time.NewTicker(w.cfg.MaintenanceInterval)
	defer tick.Stop()
	for {
		err := w.round(ctx, term)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, partitions.ErrDeposed):
			return err
		case err != nil:
			w.log.Error("maintenance of the table partitions failed, trying again", zap.Duration("in", w.cfg.MaintenanceInterval), zap.Error(postgres.Explain(err)))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// round is what the leader does each time.
func (w *maintainer) round(ctx context.Context, _ partitions.Term) error {
	return ensurePartitions(ctx, w.cfg, w.pool, w.metrics)
}

func ensurePartitions(ctx context.Context, cfg config.Config, pool *postgres.Pool, m *metrics.Metrics) error {
	if _, err := partitions.Ensure(ctx, pool.Pool, time.Now(), schedule(cfg)); err != nil {
		return fmt.Errorf("ensure the table partitions: %w", err)
	}
	return countPartitions(ctx, pool, m)
}

// keepCounting counts the table partitions until ctx ends, whoever makes and removes them.
func keepCounting(ctx context.Context, interval time.Duration, pool *postgres.Pool, m *metrics.Metrics, log *zap.Logger) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := countPartitions(ctx, pool, m)
		if err != nil && !failing && ctx.Err() == nil {
			log.Warn("the metrics of table partitions are out of date, trying again", zap.Error(postgres.Explain(err)))
		}
		failing = err != nil
	}
}

func countPartitions(ctx context.Context, pool *postgres.Pool, m *metrics.Metrics) error {
	all, err := partitions.List(ctx, pool.Pool)
	if err != nil {
		return fmt.Errorf("list the table partitions: %w", err)
	}
	m.TablePartitions.Set(float64(len(all)))
	m.PartitionsReadyUntil.Set(float64(partitions.ReadyUntil(time.Now(), all).Unix()))
	return nil
}
