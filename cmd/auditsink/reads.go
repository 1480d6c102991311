package main

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/server"
	"auditsink/metrics"
)

// reads is what a worker answers /v1 with.
type reads struct {
	pool   *postgres.Pool
	cache  *query.Cache
	clear  func(context.Context) error // makes all that is cached misses, nil where nothing is
	reader *query.Reader
	tokens *server.Tokens // nil without a file of them
}

// openReads makes a pool for reads alone, so that ingest never waits for one, and reads the file of the tokens. It doesn't wait for the database.
func openReads(ctx context.Context, cfg config.Config, client *redis.Client, m *metrics.Metrics, log *zap.Logger) (*reads, error) {
	tokens, err := openTokens(cfg, log)
	if err != nil {
		return nil, err
	}
	o := poolOptions(cfg, cfg.PostgresURL)
	o.Application = "auditsink reads"
	o.MinConns, o.MaxConns = 0, cfg.QueryMaxConns
	o.AcquireTimeout = min(cfg.PoolAcquireTimeout, cfg.QueryTimeout/2) // so that too many readers are told from a question that takes too long
	o.Waiting = func(by int) { m.QueryPoolWaiting.Add(float64(by)) }
	o.Failed = m.QueryPoolFailures.Inc
	pool, err := postgres.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	m.WatchQueryPool(func() metrics.PoolState {
		s := pool.Stat()
		return metrics.PoolState{Idle: s.IdleConns(), Acquired: s.AcquiredConns(), Constructing: s.ConstructingConns(), Max: s.MaxConns()}
	})
	r := &reads{pool: pool, cache: openCache(cfg, client, pool, m, log), tokens: tokens}
	if client != nil && cfg.CacheTTL > 0 {
		r.clear = r.cache.Clear
	}
	r.reader = newReader(cfg, pool, r.cache, m, log)
	return r, nil
}

// close ends the pool once nobody reads any more.
func (r *reads) close() {
	r.reader.Close()
	r.cache.Close()
	r.pool.Close()
}

// newReader makes a reader by the settings. cache may be nil.
func newReader(cfg config.Config, pool *postgres.Pool, cache *query.Cache, m *metrics.Metrics, log *zap.Logger) *query.Reader {
	return query.New(pool, query.Options{
		Metrics: m, Log: log, Cache: cache, Slow: cfg.SlowQuery, Timeout: cfg.QueryTimeout, RetryAttempts: cfg.PoolRetryAttempts, RetryDelay: cfg.PoolRetryDelay,
	})
}

// openTokens reads the file of the tokens, nil where none is named.
func openTokens(cfg config.Config, log *zap.Logger) (*server.Tokens, error) {
	if cfg.TokensFile == "" {
		return nil, nil //nolint:nilnil // no file is a setting, not a failure
	}
	tokens, err := server.OpenTokens(cfg.TokensFile, log)
	if err != nil {
		return nil, &config.Error{Problems: []config.Problem{{
			Variable: config.Prefix + "TOKENS_FILE", Cause: fmt.Sprintf("can't be used: %s", err), Remedy: "Mend the file; `auditsink query token` makes a line of it.",
		}}}
	}
	return tokens, nil
}

// serve adds to the server what reads answer. Half of the connections, and one at least, may be taken by exports.
func (r *reads) serve(o server.Options, cfg config.Config) server.Options {
	o.Reader, o.Tokens, o.Exports = r.reader, r.tokens, int(cfg.QueryMaxConns+1)/2
	return o
}
