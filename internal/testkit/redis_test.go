package testkit_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// TestRedis: it is real, and can be killed, started again, empty, and paused.
func TestRedis(t *testing.T) {
	server := testkit.OwnRedis(t, "--maxmemory", "3mb")
	options, err := redis.ParseURL(server.URL())
	require.NoError(t, err)
	options.MaxRetries = -1
	options.ContextTimeoutEnabled = true
	client := redis.NewClient(options)
	defer client.Close() //nolint:errcheck // the test is over
	ctx := t.Context()
	require.NoError(t, client.Set(ctx, "k", "v", 0).Err())
	require.Equal(t, "v", client.Get(ctx, "k").Val())
	require.Equal(t, "3145728", client.ConfigGet(ctx, "maxmemory").Val()["maxmemory"])

	require.NoError(t, server.Pause())
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, client.Get(short, "k").Err(), os.ErrDeadlineExceeded)
	require.NoError(t, server.Continue())
	require.Equal(t, "v", client.Get(ctx, "k").Val())

	require.NoError(t, server.Kill())
	require.Error(t, client.Get(ctx, "k").Err())
	require.NoError(t, server.Start(ctx))
	require.ErrorIs(t, client.Get(ctx, "k").Err(), redis.Nil)
}
