package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/metrics"
)

// cacheLook is how often a worker looks whether Redis can be reached, and tells it what it couldn't be told before.
const cacheLook = 5 * time.Second

// openCache makes the cache of reads of the database of pool, by the settings, in the Redis of client: nil for none. m may be nil. Close it before the client.
func openCache(cfg config.Config, client *redis.Client, pool *postgres.Pool, m *metrics.Metrics, log *zap.Logger) *query.Cache {
	return query.NewCache(client, query.CacheOptions{
		Namespace: pool.Identity, TTL: cfg.CacheTTL, EntryBytes: int(cfg.CacheEntryBytes), Timeout: cfg.RedisTimeout, Metrics: m, Log: log,
	})
}

// watchCache is the part of a worker that tells health about the cache.
func watchCache(cfg config.Config, cache *query.Cache, m *metrics.Metrics) func(context.Context) {
	return func(ctx context.Context) {
		cache.Watch(ctx, cacheLook, func(s query.CacheStats) { m.Report("cache", cacheHealth(cfg, s)) })
	}
}

// cacheHealth is the component cache of /health. Nothing of it is critical: events are stored and reads are answered without Redis.
func cacheHealth(cfg config.Config, s query.CacheStats) metrics.Component {
	if cfg.RedisURL == "" {
		return metrics.Component{Status: metrics.Healthy, Details: map[string]any{"configured": false}}
	}
	c := metrics.Component{Status: metrics.Healthy, Details: map[string]any{
		"configured": true, "reachable": s.Reachable, "storing": s.Storing, "ttl": cfg.CacheTTL.String(),
		"gets": s.Gets, "hits": s.Hits, "hit_ratio": s.Ratio, "oversized": s.Oversized,
	}}
	if !s.PausedUntil.IsZero() {
		c.Details["paused_until"] = s.PausedUntil
	}
	if s.LastError != "" {
		c.Status = metrics.Warning
		c.Details["problem"], c.Details["since"] = s.LastError, s.Since.UTC()
		c.Recommendations = append(c.Recommendations, fmt.Sprintf("cache: Redis (AUDITSINK_REDIS_URL) has failed (%s) since %s, and reads go to the database alone: %s",
			s.LastError, s.Since.UTC().Format(time.RFC3339), cacheAdvice(s.LastError)))
	}
	if s.Pending {
		c.Status = metrics.Warning
		c.Details["invalidation_pending"] = true
		c.Recommendations = append(c.Recommendations, fmt.Sprintf("cache: rows were removed, and Redis couldn't be told: once it is back, other replicas may show them for some seconds; "+
			"if this worker ends before, until another leads, for %s (AUDITSINK_CACHE_TTL) at most", cfg.CacheTTL))
	}
	return c
}

// cacheAdvice says what to do about what is wrong with Redis.
func cacheAdvice(problem string) string {
	switch problem {
	case "full":
		return "give it more memory (maxmemory), or let it evict (maxmemory-policy allkeys-lru)"
	case "read-only":
		return "the URL leads to a replica; let it lead to the primary"
	case "not permitted":
		return "see to the user and password of the URL, and that they may use INFO, GET, MGET and SET on keys that begin with auditsink:"
	case "timeout":
		return "see whether it hangs or the network is slow; AUDITSINK_REDIS_TIMEOUT is how long it is waited for"
	case "not ready":
		return "it is loading, failing over or has too many clients; if that lasts, look at its log"
	default:
		return "see whether it runs and can be reached from here"
	}
}

// invalidateCache makes what workers have cached a miss, after a command has changed which rows there are. It needs AUDITSINK_REDIS_URL; that Redis can't be told is a note.
func invalidateCache(ctx context.Context, cmd *cobra.Command, cfg config.Config, pool *postgres.Pool) {
	client, err := openRedis(cfg)
	if client != nil {
		defer client.Close() //nolint:errcheck // there is nothing to be saved
		err = openCache(cfg, client, pool, nil, zap.NewNop()).Invalidate(ctx)
	}
	if err != nil {
		cmd.PrintErrf("note: reads that are cached don't show it for %s (AUDITSINK_CACHE_TTL) at most, or until a worker begins to lead: %v\n", cfg.CacheTTL, err)
	}
}
