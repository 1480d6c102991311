package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

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
	silent()
	o.ClientName = "auditsink"
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = cfg.RedisTimeout, cfg.RedisTimeout, cfg.RedisTimeout, cfg.RedisTimeout
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled} // a round trip for each connection, and for one vendor
	return redis.NewClient(o), nil
}

// silent ends the client's own log, a line on standard error for each connection that can't be made: those who use the client tell what matters.
var silent = sync.OnceFunc(func() { redis.SetLogger(silence{}) })

type silence struct{}

// Printf writes nothing.
func (silence) Printf(context.Context, string, ...any) {}
