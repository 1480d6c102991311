package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"auditsink/config"
	"auditsink/internal/performance"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/metrics"
	"auditsink/partitions"
)

// watchInterval is how often every worker, leading or not, looks at the table partitions for metrics and health.
const watchInterval = time.Minute

// summarizeInterval is how often the leader summarizes the new pages of the partitions that take rows: what comes in between is read by each query of such a partition.
const summarizeInterval = time.Minute

// maintain takes part in the election of the leader, and maintains the table partitions whenever this worker leads, until ctx ends; then another
// worker takes over at once. It also tells metrics and health about them. Nothing that happens to it ends the worker.
func maintain(ctx context.Context, cfg config.Config, pool *postgres.Pool, watch *partitions.Watch, cache *query.Cache, optimizer *performance.Optimizer, m *metrics.Metrics, log *zap.Logger) error {
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		keepWatching(ctx, min(watchInterval, cfg.MaintenanceInterval), watch, log)
	}()
	defer func() { <-watched }()
	maintainer := &maintainer{work: maintenance(cfg, pool), interval: cfg.MaintenanceInterval, watch: watch, cache: cache, optimizer: optimizer, metrics: m, log: log}
	maintainer.work.Changed = maintainer.invalidate
	maintainer.builder = partitions.Builder{
		DB: pool.Pool, Grace: cfg.IndexGrace, Now: time.Now, Every: min(watchInterval, cfg.MaintenanceInterval), Told: maintainer.built,
	}
	maintainer.summarizer = &partitions.Summarizer{DB: pool.Pool, Now: time.Now, Every: min(summarizeInterval, cfg.MaintenanceInterval), Told: maintainer.summarized}
	if err := lease(cfg, watch, m, log).Lead(ctx, pool.Pool, maintainer.lead); err != nil {
		return fmt.Errorf("maintain the table partitions: %w", err)
	}
	return nil
}

// lease is this worker's part in the election, with what logs and metrics tell of it.
func lease(cfg config.Config, watch *partitions.Watch, m *metrics.Metrics, log *zap.Logger) partitions.Lease {
	about := func(term partitions.Term) []zap.Field {
		return []zap.Field{zap.Int64("term", term.Number), zap.String("holder", term.Holder)}
	}
	return partitions.Lease{
		Duration: cfg.LeaderLease,
		Holder:   owner(),
		Began: func(term partitions.Term) {
			m.LeaderSince.Set(float64(term.Since.Unix())) // first, so that a scrape between the two sees no leader since 1970
			m.Leader.Set(1)
			log.Info("leading: this worker maintains the table partitions", about(term)...)
		},
		Ended: func(term partitions.Term, err error) {
			m.Leader.Set(0)
			m.LeaderSince.Set(0)
			watch.StandDown()
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
	work       partitions.Maintenance
	builder    partitions.Builder
	summarizer *partitions.Summarizer
	interval   time.Duration
	watch      *partitions.Watch
	cache      *query.Cache
	optimizer  *performance.Optimizer
	metrics    *metrics.Metrics
	log        *zap.Logger
}

// lead makes a round at once and then one every AUDITSINK_MAINTENANCE_INTERVAL, until ctx ends or the term does. A round that fails is made again at
// its next time: partitions are there for months ahead.
//
// Beside the rounds it builds deferred indexes, which takes longer than a round may, and summarizes BRIN indexes, which is due more often.
func (w *maintainer) lead(ctx context.Context, term partitions.Term) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.builder.Run(ctx, term) })
	group.Go(func() error { return w.summarizer.Run(ctx, term) })
	group.Go(func() error { return w.rounds(ctx, term) })
	return group.Wait()
}

func (w *maintainer) rounds(ctx context.Context, term partitions.Term) error {
	w.invalidate(ctx) // the leader before may have ended between removing rows and telling so
	tick := time.NewTicker(w.interval)
	defer tick.Stop()
	for {
		err := w.round(ctx, term)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, partitions.ErrDeposed):
			return err
		case err != nil:
			w.log.Error("maintenance of the table partitions failed, trying again", zap.Duration("in", w.interval), zap.Error(postgres.Explain(err)))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// invalidate makes what is cached of rows that may have gone a miss. Where Redis can't be told now, it is told as soon as it can be: see watchCache.
func (w *maintainer) invalidate(ctx context.Context) {
	if err := w.cache.Invalidate(ctx); err != nil {
		w.log.Warn("rows may have been removed, and the cache of reads couldn't be told yet: trying again", zap.Error(err))
	}
}

// round is what the leader does each time.
func (w *maintainer) round(ctx context.Context, term partitions.Term) error {
	done, err := w.work.Round(ctx, term)
	for _, did := range done {
		w.tell(did)
	}
	if err == nil {
		err = term.Maintained(ctx, w.work.DB)
	}
	if told := w.watch.PublishStatistics(ctx, time.Now()); told != nil {
		err = errors.Join(err, fmt.Errorf("look at the table partitions: %w", told))
	}
	if errors.Is(err, partitions.ErrDeposed) || ctx.Err() != nil {
		return err
	}
	if slow := w.optimizer.Round(ctx, term); slow != nil {
		err = errors.Join(err, fmt.Errorf("keep the table partitions fast: %w", slow))
	}
	return err
}

// tell logs and counts what was done. What is left for later is no news: it comes up in each round until it is done.
func (w *maintainer) tell(did fmt.Stringer) {
	level := zap.InfoLevel
	switch did := did.(type) {
	case partitions.Action:
		switch did.What {
		case "dropped":
			w.metrics.PartitionsDropped.Inc()
		case "expired":
			w.metrics.RowsExpired.Add(float64(did.Rows))
		}
	case partitions.Care:
		if did.Left != "" {
			level = zap.DebugLevel
		}
	}
	w.log.Log(level, "table partitions maintained", zap.Stringer("did", did))
}

// built is told of each deferred index.
func (w *maintainer) built(did partitions.Care, err error) {
	if err != nil {
		w.log.Error("deferred indexes can't be built, trying again", zap.Error(postgres.Explain(err)))
		return
	}
	w.tell(did)
}

// summarized is told of BRIN indexes that couldn't be summarized.
func (w *maintainer) summarized(left partitions.Care, err error) {
	if err != nil {
		w.log.Error("BRIN indexes can't be summarized, trying again", zap.Error(postgres.Explain(err)))
		return
	}
	w.tell(left)
}

// maintenance is the leader's work by the settings.
func maintenance(cfg config.Config, pool *postgres.Pool) partitions.Maintenance {
	return partitions.Maintenance{DB: pool.Pool, Schedule: schedule(cfg), Retention: retention(cfg), Now: time.Now}
}

func retention(cfg config.Config) partitions.Retention {
	return partitions.Retention{Enforce: cfg.RetentionEnforce, MinDays: cfg.RetentionMinDays, Grace: time.Duration(cfg.RetentionGraceDays) * 24 * time.Hour}
}

// keepWatching looks at the table partitions until ctx ends, whoever makes and removes them.
func keepWatching(ctx context.Context, interval time.Duration, watch *partitions.Watch, log *zap.Logger) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := watch.Publish(ctx, time.Now())
		if err != nil && !failing && ctx.Err() == nil {
			log.Warn("what metrics and health say of the table partitions is out of date, trying again", zap.Error(postgres.Explain(err)))
		}
		failing = err != nil
	}
}
