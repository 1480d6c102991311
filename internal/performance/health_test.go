package performance

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/metrics"
)

// TestHealth: each warning with what causes it, and what to do about it; nothing where all is well.
func TestHealth(t *testing.T) {
	share := func(f float64) *float64 { return &f }
	for _, c := range []struct {
		name string
		r    Report
		want string // of the recommendation; empty: healthy
	}{
		{"nothing is known", Report{Database: Database{Unread: []Unread{{"database", "gone"}}}}, ""},
		{"fast", Report{Flush: Flush{Duration: Quantile{P99: 5}}, Database: Database{Tables: &Tables{Hits: 9_000, Reads: 1_000, HitRatio: share(0.9)}, Statements: &Statements{}}}, ""},
		{"slow flushes", Report{Flush: Flush{Duration: Quantile{P99: 5.1}}}, "flushes take 5.1s"},
		{"little in memory", Report{Database: Database{Tables: &Tables{Hits: 5_000, Reads: 5_000, HitRatio: share(0.5)}}}, "only 50% of the blocks"},
		{"of little", Report{Database: Database{Tables: &Tables{Hits: 5_000, Reads: 4_999, HitRatio: share(0.5)}}}, ""},
		{"slow statements", Report{Database: Database{Statements: &Statements{Slow: 2}}}, "2 statements take 1s or longer"},
	} {
		h := health(c.r, time.Second)
		if c.want == "" {
			require.Equal(t, metrics.Healthy, h.Status, c.name)
			require.Empty(t, h.Recommendations)
			continue
		}
		require.Equal(t, metrics.Warning, h.Status, c.name)
		require.Len(t, h.Recommendations, 1)
		require.Contains(t, h.Recommendations[0], c.want)
	}
	h := health(Report{Database: Database{Indexes: &Indexes{Missing: []SeqScanned{{Partition: "p"}}}}}, time.Second)
	require.Equal(t, metrics.Healthy, h.Status, "a hint, no more")
	require.Contains(t, h.Recommendations[0], "p most")
}

// TestHealthOfAServer: statements that are slow in fact, and blocks that aren't in memory.
func TestHealthOfAServer(t *testing.T) {
	preloaded(t, func(b *bed) {
		c := b.collector(func(o *Options) { o.Slow = 100 * time.Millisecond })
		require.Equal(b, metrics.Healthy, health(b.next(c), c.Slow).Status)
		b.do(`SELECT pg_sleep(0.15)`)
		for range 10 {
			b.metrics.FlushSeconds.Observe(0.6)
		}
		h := health(b.next(c), c.Slow)
		require.Equal(b, metrics.Warning, h.Status)
		require.Len(b, h.Recommendations, 2)
		require.Equal(b, metrics.Healthy, health(b.next(c), c.Slow).Status, "it is over")
	})
}

// TestLog: a report's line has the same few figures each time, and no text of a statement.
func TestLog(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	half := 0.5
	full := Report{
		Seconds: 60, Ingest: Ingest{RecordsPerSecond: 7}, Cache: &Cache{Ratio: &half},
		Database: Database{Tables: &Tables{HitRatio: &half}, Statements: &Statements{Slow: 3, Top: []Statement{{Text: "SELECT secret"}}}, WAL: &WAL{BytesPerSecond: 9}},
	}
	for _, r := range []Report{full, {}} {
		zap.New(core).Info("performance report", logFields(r)...)
	}
	first, second := logs.All()[0].ContextMap(), logs.All()[1].ContextMap()
	require.Len(t, first, 16)
	require.Equal(t, []any{0.5, 0.5, int64(3), 9.0, 7.0}, []any{first["heap_hit_ratio"], first["cache_hit_ratio"], first["slow_statements"], first["wal_bytes_per_second"], first["records_per_second"]})
	for name := range first {
		require.Contains(t, second, name)
	}
	require.Nil(t, second["heap_hit_ratio"])
}

// TestWriteReport: people see every part of it, in units, also of a report that knows next to nothing.
func TestWriteReport(t *testing.T) {
	preloaded(t, func(b *bed) {
		b.still(december)
		b.fill("2026-12", 20_000)
		c := b.collector(func(o *Options) { o.Cached = true })
		b.do(`DELETE FROM audit_log WHERE principal_id LIKE 'p1%'`, `SELECT pg_sleep(1.01)`)
		for range 12 {
			b.do(`SELECT count(*), 'secret' FROM ` + december)
		}
		b.metrics.RowsInserted.Add(1234)
		b.metrics.FlushRetries.WithLabelValues("transient").Inc()
		b.metrics.QueryCacheRequests.WithLabelValues("hit").Add(3)
		b.metrics.QueryCacheRequests.WithLabelValues("miss").Add(1)
		b.exec(`INSERT INTO audit_optimization (rule, target, reason, state, detail, done_by) VALUES ('vacuum', 'audit_log_2026_11', 'many', 'failed', 'locked', 'me')`)
		var out bytes.Buffer
		require.NoError(b, WriteReport(&out, b.next(c)))
		text := out.String()
		b.Log(text)
		for _, want := range []string{
			"Performance of me", "2026-12-10T12:00:00Z to 2026-12-10T12:01:00Z \\(1m0s\\)", `rows +1234 +20.6/s`, `retries, transient +1`, `4 gets +3 hits +75.0%`, `memory +[0-9.]+ MB`,
			`dead in audit_log_2026_12 +11111 +of 20000; vacuumed -`, `partitions +3 +ready until 2027-01-01`, `WAL +[0-9.]+ kB/s`, `Statements by time since .* \(1 slow\)`, `1(\.\d+)?s +1 calls +1(\.\d+)?s +slow +SELECT pg_sleep`,
			`audit_log_pkey`, `not used since`, `vacuum +audit_log_2026_11 +failed +many; locked`, "Advice on the server's settings", `shared_buffers +32MB +→`,
		} {
			require.Regexp(b, want, text)
		}
		require.NotContains(b, text, "secret")
		require.NotContains(b, text, "%!")
	})
	var out bytes.Buffer
	require.NoError(t, WriteReport(&out, Report{Database: Database{Unread: []Unread{{"database", "it is gone"}}}, AdviceUnknown: []string{"all"}}))
	for _, want := range []string{"can't be read: database: it is gone", "there is none", "not known: all", "  none"} {
		require.Contains(t, out.String(), want)
	}
	require.NotContains(t, out.String(), "%!")
	require.Error(t, WriteReport(failing{}, Report{}))
	for _, line := range strings.Split(out.String(), "\n") {
		require.NotContains(t, line, "\t")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, bytes.ErrTooLarge }
