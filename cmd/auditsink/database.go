package main

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/metrics"
	"auditsink/migrations"
)

// poolOptions are the settings of a pool to the given URL.
func poolOptions(cfg config.Config, url config.Secret) postgres.Options {
	return postgres.Options{
		URL: url.Reveal(), SSLMode: cfg.PostgresSSLMode, Prepared: cfg.PostgresPrepared,
		MinConns: cfg.PoolMinConns, MaxConns: cfg.PoolMaxConns,
		IdleTimeout: cfg.PoolIdleTimeout, AcquireTimeout: cfg.PoolAcquireTimeout,
	}
}

// maintenanceURL is where schema and table partitions are changed: around a pooler, where there is one.
func maintenanceURL(cfg config.Config) config.Secret {
	if cfg.PostgresMaintenanceURL != "" {
		return cfg.PostgresMaintenanceURL
	}
	return cfg.PostgresURL
}

// openDatabase opens a pool for a command and waits as long as the settings allow for the server to answer.
func openDatabase(ctx context.Context, cfg config.Config, url config.Secret) (*postgres.Pool, error) {
	o := poolOptions(cfg, url)
	o.MinConns = 0
	pool, err := postgres.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	err = pool.Wait(ctx, cfg.PoolRetryAttempts, cfg.PoolRetryDelay, func(error) {})
	if err != nil {
		pool.Close()
		return nil, postgres.Explain(err)
	}
	return pool, nil
}

// openChecked loads the settings, opens the database at the URL chosen from them, and checks that its schema is ours.
func openChecked(ctx context.Context, url func(config.Config) config.Secret) (config.Config, *postgres.Pool, error) {
	cfg, err := config.Load(config.Postgres)
	if err != nil {
		return cfg, nil, err
	}
	pool, err := openDatabase(ctx, cfg, url(cfg))
	if err != nil {
		return cfg, nil, err
	}
	if err := migrations.Check(ctx, pool.Pool); err != nil {
		pool.Close()
		return cfg, nil, postgres.Explain(err)
	}
	return cfg, pool, nil
}

// workerPools opens the pools of a worker: for ingest, watched by metrics, and for maintenance. They are the same where no URL of
// its own is set for the latter.
func workerPools(ctx context.Context, cfg config.Config, m *metrics.Metrics) (ingest, maintenance *postgres.Pool, err error) {
	o := poolOptions(cfg, cfg.PostgresURL)
	o.Acquired = m.PoolAcquireSeconds.Observe
	o.Waiting = func(by int) { m.PoolWaiting.Add(float64(by)) }
	o.Failed = m.PoolFailures.Inc
	if ingest, err = postgres.Open(ctx, o); err != nil {
		return nil, nil, err
	}
	m.WatchPool(func() metrics.PoolState {
		s := ingest.Stat()
		return metrics.PoolState{Idle: s.IdleConns(), Acquired: s.AcquiredConns(), Constructing: s.ConstructingConns(), Max: s.MaxConns()}
	})
	if maintenanceURL(cfg) == cfg.PostgresURL {
		return ingest, ingest, nil
	}
	o = poolOptions(cfg, maintenanceURL(cfg))
	o.MinConns, o.MaxConns = 0, 2
	if maintenance, err = postgres.Open(ctx, o); err != nil {
		ingest.Close()
		return nil, nil, err
	}
	return ingest, maintenance, nil
}

// awaitDatabase waits without end for the database to answer, and then requires that it takes writes.
func awaitDatabase(ctx context.Context, cfg config.Config, pool *postgres.Pool, log *zap.Logger) error {
	err := pool.Wait(ctx, 0, cfg.PoolRetryDelay, func(err error) {
		log.Warn("waiting for Postgres", zap.Error(postgres.Explain(err)))
	})
	if err != nil {
		return postgres.Explain(err)
	}
	if err := pool.Writable(ctx); err != nil {
		return fmt.Errorf("check the database: %w", postgres.Explain(err))
	}
	return nil
}
