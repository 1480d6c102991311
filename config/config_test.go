package config

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// environment makes vars the only variables with our prefix until the test ends.
func environment(t testing.TB, vars map[string]string) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, value, _ := strings.Cut(entry, "="); strings.HasPrefix(name, Prefix) {
			require.NoError(t, os.Unsetenv(name))
			t.Cleanup(func() { require.NoError(t, os.Setenv(name, value)) }) //nolint:usetesting // t.Setenv can't restore what was unset before it
		}
	}
	for name, value := range vars {
		t.Setenv(name, value)
	}
}

func TestDefaultValues(t *testing.T) {
	require.Equal(t, Config{
		KafkaGroup: "auditsink", KafkaStart: "earliest", KafkaSessionTimeout: 10 * time.Second,
		PostgresPrepared: true,
		PoolMinConns:     2, PoolMaxConns: 20, PoolIdleTimeout: 30 * time.Second, PoolAcquireTimeout: 10 * time.Second,
		PoolRetryAttempts: 3, PoolRetryDelay: time.Second,
		CopyConns: 4, FlushRows: 5000, FlushBytes: 8 << 20, FlushInterval: 500 * time.Millisecond, BufferBytes: 32 << 20,
		PartitionInterval: "month", PartitionAhead: 6, RetentionMinDays: 30, RetentionGraceDays: 7,
		IndexProfile: "full", IndexBuild: "immediate", IndexGrace: time.Hour,
		LeaderLease: 30 * time.Second, MaintenanceInterval: 10 * time.Minute,
		RedisTimeout: 250 * time.Millisecond, QueryMaxConns: 4, QueryTimeout: 10 * time.Second, SlowQuery: time.Second, CacheTTL: time.Hour, CacheEntryBytes: 1 << 20,
		ReportInterval: 5 * time.Minute, OptimizeCache: true, OptimizeAnalyze: true, OptimizeVacuum: true, AlertInterval: 15 * time.Second,
		EventMaxBytes: 1 << 20, RetentionHorizonDays: 2555,
		HTTPAddr: "127.0.0.1:9464", ShutdownTimeout: 30 * time.Second, LogLevel: "info", LogFormat: "json",
	}, Default())
}

func TestDefaultIsValidAndIgnoresTheEnvironment(t *testing.T) {
	environment(t, map[string]string{"AUDITSINK_FLUSH_ROWS": "7"})
	cfg := Default()
	require.Equal(t, 5000, cfg.FlushRows)
	require.NoError(t, cfg.Validate())
}

// Every field has the tags that loading, checking and the reference go by, and limits that can be read.
func TestTags(t *testing.T) {
	for _, s := range settings() {
		require.Regexp(t, `^AUDITSINK_[A-Z0-9]+(_[A-Z0-9]+)*$`, s.variable(), s.Name)
		require.NotEmpty(t, s.Tag.Get("desc"), s.Name)
		low, high := s.bounds()
		require.Less(t, low, high, s.Name)
		if need, ok := s.Tag.Lookup("need"); ok {
			require.Contains(t, []string{Kafka.String(), Topics.String(), Postgres.String()}, need, s.Name)
		}
		if s.Type.Kind() != reflect.Bool && s.Type.Kind() != reflect.String && s.Type.Kind() != reflect.Slice {
			require.NotEmpty(t, s.Tag.Get("min"), s.Name)
			require.NotEmpty(t, s.Tag.Get("default"), s.Name)
		}
	}
}

func TestSettingsHideSecrets(t *testing.T) {
	cfg := Default()
	cfg.KafkaTopics = []string{"a", "^b"}
	cfg.PostgresURL = "postgres://u:hunter2@h/d"
	shown := map[string]string{}
	for _, s := range cfg.Settings() {
		shown[s.Variable] = s.Value
	}
	require.Len(t, shown, reflect.TypeFor[Config]().NumField())
	require.Equal(t, "(set)", shown["AUDITSINK_POSTGRES_URL"])
	require.Equal(t, "(not set)", shown["AUDITSINK_KAFKA_SASL_PASSWORD"])
	require.Equal(t, "a,^b", shown["AUDITSINK_KAFKA_TOPICS"])
	require.Equal(t, "8MiB", shown["AUDITSINK_FLUSH_BYTES"])
	require.Equal(t, "500ms", shown["AUDITSINK_FLUSH_INTERVAL"])
	require.Equal(t, "true", shown["AUDITSINK_POSTGRES_PREPARED"])
}
