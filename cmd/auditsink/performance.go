package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/performance"
	"auditsink/internal/postgres"
	"auditsink/metrics"
)

// newOptimizer makes what keeps the database fast by itself. forget makes all entries of the cache of queries misses; nil: there is no cache.
func newOptimizer(cfg config.Config, maintenance *postgres.Pool, forget func(context.Context) error, m *metrics.Metrics, log *zap.Logger) *performance.Optimizer {
	return &performance.Optimizer{
		DB: maintenance.Pool, On: performance.Switches{Cache: cfg.OptimizeCache, Analyze: cfg.OptimizeAnalyze, Vacuum: cfg.OptimizeVacuum},
		By: owner(), Clear: forget, Metrics: m, Log: log, Now: time.Now,
	}
}

// newReports makes what reports how fast this worker and its database are, every AUDITSINK_REPORT_INTERVAL. The database is asked through the given pool,
// by one connection at a time.
func newReports(cfg config.Config, pool *postgres.Pool, optimizer *performance.Optimizer, m *metrics.Metrics, log *zap.Logger) *performance.Collector {
	return performance.New(performance.Options{
		DB: pool.Pool, Metrics: m, Log: log, Worker: owner(), Every: cfg.ReportInterval, Slow: cfg.SlowQuery, Cached: optimizer.Clear != nil,
		PoolMaxConns: int(cfg.PoolMaxConns), ReadMaxConns: int(cfg.QueryMaxConns),
		Database: performance.Machine{MemoryBytes: int64(cfg.DatabaseMemory), Cores: cfg.DatabaseCores},
		Reported: func(ctx context.Context, r performance.Report) {
			if err := optimizer.Cache(ctx, r.Cache); err != nil && ctx.Err() == nil {
				log.Warn("the cache of queries doesn't pay, and was not cleared", zap.Error(postgres.Explain(err)))
			}
		},
		Now: time.Now,
	})
}
