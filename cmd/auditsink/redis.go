package main

import (
	"fmt"

	"github.com/redis/go-redis/v9"

	"auditsink/config"
)

// openRedis makes the client of the settings, nil where there is no Redis. It connects when it is first used: Redis may come and go, and nothing waits for it.
// Each operation is tried once and ends within AUDITSINK_REDIS_TIMEOUT, or with its context.
func openRedis(cfg config.Config) (*redis.Client, error) {
	if cfg.RedisURL == "" {
		return nil, nil //nolint:nilnil // no Redis is a setting, not a failure
	}
	o, err := redis.ParseURL(cfg.RedisURL.Reveal())
	if err != nil {
		return nil, fmt.Errorf("read the URL of Redis (AUDITSINK_REDIS_URL): %w", err)
	}
	o.ClientName = "auditsink"
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = cfg.RedisTimeout, cfg.RedisTimeout, cfg.RedisTimeout, cfg.RedisTimeout
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	return redis.NewClient(o), nil
}
