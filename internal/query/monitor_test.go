package query_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/internal/event"
	"auditsink/internal/query"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

// planted is a question with values in every filter and in the scope that are found again wherever they come out.
func planted() (query.Scope, query.Filter, []string) {
	f := query.Filter{
		From: time.Date(2022, 3, 7, 11, 13, 17, 0, time.UTC), To: time.Date(2023, 10, 9, 19, 23, 29, 0, time.UTC),
		ArchivedFrom: time.Date(2021, 5, 3, 7, 31, 37, 0, time.UTC), ArchivedTo: time.Date(2033, 4, 8, 9, 41, 43, 0, time.UTC),
		PrincipalID: "planted-principal", OrganizationID: "planted-organization", Action: "planted-action", Status: "attempt", Hash: strings.Repeat("f1a9", 16),
		TargetResourceType: "planted-type", TargetResourceID: "planted-id", CorrelationID: "planted-correlation", DataClassification: "CONFIDENTIAL", RetentionPolicy: "planted-policy",
	}
	return query.Organizations("planted-organization", "planted-other"), f,
		[]string{"planted", "11:13:17", "19:23:29", "07:31:37", "09:41:43", "attempt", "f1a9", "CONFIDENTIAL", "7654321"}
}

// TestSlowQueries: a slow query is logged once, with what it took, its text and its plan, and without a value, whichever server and however it is reached.
func TestSlowQueries(t *testing.T) {
	for _, version := range []int{15, 18} {
		for _, pooled := range []bool{false, true} {
			t.Run(fmt.Sprintf("postgres%d pooled %t", version, pooled), func(t *testing.T) {
				b, _ := newModelBed(t, version)
				url := b.url()
				if pooled {
					url = testkit.OwnPgBouncer(t, url)
				}
				core, logs := observer.New(zapcore.DebugLevel)
				m := metrics.New("test", event.Reasons())
				r := b.through(url, 4, !pooled, func(o *query.Options) { o.Metrics, o.Log, o.Slow = m, zap.New(core), time.Nanosecond })
				scope, f, values := planted()
				// The first read looks at the partitions too, and one plan is made at a time.
				_, err := r.Count(t.Context(), scope, query.Filter{From: f.From, To: f.To}, 1)
				require.NoError(t, err)
				r.Close() // waits for the plan
				before := map[string]int{}
				for _, entry := range logs.TakeAll() {
					before[fmt.Sprint(entry.ContextMap()["query"])]++
				}
				require.Equal(t, map[string]int{"partitions": 1, "count": 1}, before)
				_, err = r.Events(t.Context(), scope, f, 987, "")
				require.NoError(t, err)
				r.Close()
				_, err = r.Count(t.Context(), scope, f, 987)
				require.NoError(t, err)
				r.Close()
				_, err = r.Event(t.Context(), scope, 7654321, f.From)
				require.ErrorIs(t, err, query.ErrNotFound)
				r.Close()
				require.NoError(t, r.Export(t.Context(), scope, f, func(query.Event) error { return nil }))
				r.Close()

				seen := map[string]int{}
				for _, entry := range logs.All() {
					fields := entry.ContextMap()
					name := fmt.Sprint(fields["query"])
					text, plan := fmt.Sprint(fields["text"]), fmt.Sprint(fields["plan"])
					seen[name]++
					raw, err := json.Marshal(fields)
					require.NoError(t, err)
					for _, value := range values {
						require.NotContains(t, entry.Message+string(raw), value)
					}
					for _, field := range []string{"took", "acquire", "rows", "statements", "slowest"} {
						require.Contains(t, fields, field)
					}
					switch name {
					case "events":
						require.Contains(t, text, "principal_id = $4::text AND organization_id = $5::text")
						require.Contains(t, text, "ORDER BY timestamp DESC, id DESC LIMIT $")
					case "event":
						require.Contains(t, text, "id = $3::bigint")
					}
					require.Contains(t, text, "organization_id = ANY ($")
					if name != "export" { // its text is that of events
						require.Contains(t, plan, "Index", "%v", fields)
						require.Contains(t, plan, "$")
						require.Contains(t, plan, " on audit_log_")
					} else {
						require.NotContains(t, fields, "plan", "made within the minute")
						require.NotEmpty(t, fields["no_plan"])
					}
				}
				for _, name := range []string{"events", "count", "event"} {
					require.Equal(t, 1, seen[name], name)
				}
				require.Positive(t, seen["export"])
				sample, err := m.Sample(time.Now())
				require.NoError(t, err)
				for name, times := range seen {
					require.InDelta(t, times+before[name], sample.Sum("slow_queries_total", metrics.Label{Name: "query", Value: name}), 0)
				}
				require.Zero(t, b.number(`SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND datname = current_database()`))
				if !pooled {
					require.NoError(t, r.Export(t.Context(), scope, f, func(query.Event) error { return nil }), "no statement was left prepared")
				}
			})
		}
	}
}

// TestSlowQueriesOnly: nothing is logged that was fast, nor for 0.
func TestSlowQueriesOnly(t *testing.T) {
	b := newBed(t, 18, full(stamp(canonical)))
	for _, slow := range []time.Duration{0, time.Hour} {
		core, logs := observer.New(zapcore.DebugLevel)
		r := b.reader(func(o *query.Options) { o.Log, o.Slow = zap.New(core), slow })
		_, err := r.Events(t.Context(), query.Everything(), always, 1, "")
		require.NoError(t, err)
		r.Close()
		require.Empty(t, logs.All())
	}
}

// TestPlanDoesntDelay: whoever asked has the answer though the plan can't be had; the log line comes all the same, and says why it has none.
func TestPlanDoesntDelay(t *testing.T) {
	b := newBed(t, 18, full(stamp(canonical)))
	core, logs := observer.New(zapcore.DebugLevel)
	r := b.through(b.url(), 1, true, func(o *query.Options) {
		o.Log, o.Slow, o.Timeout = zap.New(core), time.Nanosecond, 100*time.Millisecond
	})
	// Once it has looked at the partitions, no other plan is being made when the next one is wanted.
	b.eventually("it knows the partitions", func() bool {
		_, err := r.Count(t.Context(), query.Everything(), always, 1)
		r.Close()
		return err == nil
	})
	release := b.hold()
	_, err := r.Events(t.Context(), query.Everything(), always, 1, "") // the plan waits for the same lock
	require.ErrorIs(t, err, query.ErrTimeout)
	require.Equal(t, 0, logs.FilterField(zap.String("query", "events")).Len(), "it is under way")
	r.Close()
	release()
	told := logs.FilterField(zap.String("query", "events")).All()
	require.Len(t, told, 1)
	require.Contains(t, told[0].ContextMap(), "no_plan")
	require.Equal(t, true, told[0].ContextMap()["failed"])
	_, err = r.Events(t.Context(), query.Everything(), always, 1, "")
	require.NoError(t, err)
	r.Close()
}

// TestFloodOfSlowQueries: each is logged, and a plan is made for the first alone.
func TestFloodOfSlowQueries(t *testing.T) {
	b := newBed(t, 18, full(stamp(canonical)))
	core, logs := observer.New(zapcore.DebugLevel)
	r := b.reader(func(o *query.Options) { o.Log, o.Slow = zap.New(core), time.Nanosecond })
	for range 50 {
		_, err := r.Events(t.Context(), query.Everything(), always, 1, "")
		require.NoError(t, err)
	}
	r.Close()
	plans := 0
	told := logs.FilterField(zap.String("query", "events")).All()
	for _, entry := range told {
		if entry.ContextMap()["plan"] != nil {
			plans++
		}
	}
	require.Len(t, told, 50)
	require.LessOrEqual(t, plans, 1)
}

// TestQueryMetrics: each named query is counted, with its rows and its failures.
func TestQueryMetrics(t *testing.T) {
	b, all := newModelBed(t, 18)
	m := metrics.New("test", event.Reasons())
	r := b.reader(func(o *query.Options) { o.Metrics = m })
	for range 2 {
		page, err := r.Events(t.Context(), query.Everything(), always, 7, "")
		require.NoError(t, err)
		_, err = r.Event(t.Context(), query.Everything(), page.Events[0].ID, time.Time{})
		require.NoError(t, err)
	}
	_, err := r.Event(t.Context(), query.Everything(), -1, time.Time{})
	require.ErrorIs(t, err, query.ErrNotFound)
	_, err = r.Count(t.Context(), query.Everything(), always, 10)
	require.NoError(t, err)
	require.NoError(t, r.Export(t.Context(), query.Everything(), always, func(query.Event) error { return nil }))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Count(ctx, query.Everything(), always, 10)
	require.ErrorIs(t, err, context.Canceled)
	b.exec(`ALTER TABLE audit_log RENAME COLUMN ttl TO other`)
	_, err = r.Events(t.Context(), query.Everything(), always, 7, "")
	require.Equal(t, query.Unavailable, query.FailureOf(err), "%v", err)

	sample, err := m.Sample(time.Now())
	require.NoError(t, err)
	require.Equal(t, map[string]float64{"events": 14, "event": 2, "count": 1, "export": float64(len(all)), "partitions": float64(b.number(`SELECT count(*) FROM audit_log_partition_bounds()`))},
		rounded(sample.By("query_rows_total", "query")))
	require.Equal(t, map[string]float64{"events": 1}, sample.By("query_failures_total", "query"))
	for name, times := range map[string]uint64{"events": 3, "event": 3, "count": 2, "partitions": 1} {
		d := sample.Distribution("query_duration_seconds", metrics.Label{Name: "query", Value: name})
		require.Equal(t, times, d.Count, name)
		require.Positive(t, d.Sum)
	}
	require.GreaterOrEqual(t, sample.Distribution("query_acquire_seconds").Count, uint64(9))
}

// rounded leaves out what a count's statements of several table partitions give.
func rounded(rows map[string]float64) map[string]float64 {
	rows["count"] = min(rows["count"], 1)
	return rows
}

// TestQueriesCached: an answer from the cache is what the database gave, to the letter; nobody gets that of another scope; and errors aren't kept.
func TestQueriesCached(t *testing.T) {
	b, all := newModelBed(t, 18)
	b.exec(`UPDATE audit_log SET details = '{"html": "<a&b>\u2028", "n": 1.500, "deep": {"x": [null, true]}}', outcome_description = '<&>', timestamp_text = '2022-01-01t00:00:00.5+01:00' WHERE id % 3 = 0`)
	b.exec(`UPDATE audit_log SET principal_id = '', lane_id = 0, lane_offset = 0, processing_latency = 0 WHERE id % 5 = 0`)
	client := connect(t, testkit.OwnRedis(t).URL(), redisTimeout)
	m := metrics.New("test", event.Reasons())
	cache := query.NewCache(client, query.CacheOptions{
		Namespace: func(context.Context) (string, error) { return "test", nil }, TTL: time.Hour, EntryBytes: 1 << 20, Timeout: 10 * time.Second, Metrics: m,
	})
	t.Cleanup(cache.Close)
	plain, kept := b.reader(), b.reader(func(o *query.Options) { o.Cache = cache })
	results := func() map[string]float64 {
		sample, err := m.Sample(time.Now())
		require.NoError(t, err)
		return sample.By("query_cache_requests_total", "result")
	}
	past := query.Filter{From: time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)}
	ask := func(ctx context.Context, r *query.Reader, s query.Scope) []any {
		page, err := r.Events(ctx, s, past, 50, "")
		require.NoError(t, err)
		second, err := r.Events(ctx, s, past, 50, page.Next)
		require.NoError(t, err)
		require.NotEqual(t, page.Events, second.Events)
		count, err := r.Count(ctx, s, past, 10_000)
		require.NoError(t, err)
		one, err := r.Event(ctx, s, page.Events[0].ID, time.Time{})
		require.NoError(t, err)
		text, err := json.Marshal([]any{page, second, count, one})
		require.NoError(t, err)
		return []any{string(text)}
	}
	scopes := []query.Scope{query.Everything(), query.Organizations("A"), query.Organizations("B"), query.Organizations("A", "B")}
	want := map[string]bool{}
	for _, s := range scopes {
		answer := ask(t.Context(), plain, s)
		want[fmt.Sprint(answer)] = true
		require.Equal(t, answer, ask(t.Context(), kept, s))
	}
	require.Len(t, want, len(scopes), "what differs by scope")
	b.eventually("all are kept", func() bool { return client.DBSize(t.Context()).Val() >= int64(4*len(scopes)) })
	before := results()
	answers := map[int][]any{}
	for i, s := range scopes {
		answers[i] = ask(t.Context(), plain, s)
	}
	b.exec(`UPDATE audit_log SET action = 'altered'`)
	for i, s := range scopes {
		require.Equal(t, answers[i], ask(t.Context(), kept, s), "from the cache")
	}
	require.InDelta(t, float64(4*len(scopes)), results()["hit"]-before["hit"], 0)
	for _, s := range scopes {
		require.Equal(t, ask(t.Context(), plain, s), ask(query.Fresh(t.Context()), kept, s), "not from the cache")
	}

	// What isn't there may come: neither that nor a failure is kept.
	_, err := kept.Event(t.Context(), query.Everything(), 1<<40, all[0].Timestamp)
	require.ErrorIs(t, err, query.ErrNotFound)
	b.exec(`INSERT INTO audit_log (id, timestamp, action, status) VALUES ($1, $2, 'late', 'success')`, int64(1)<<40, all[0].Timestamp)
	_, err = kept.Event(t.Context(), query.Everything(), 1<<40, all[0].Timestamp)
	require.NoError(t, err)
	_, err = kept.Event(t.Context(), query.Organizations("A"), 1<<40, all[0].Timestamp)
	require.ErrorIs(t, err, query.ErrNotFound, "kept for another scope")
	b.exec(`ALTER TABLE audit_log RENAME TO away`)
	_, err = kept.Count(t.Context(), query.Organizations("C"), past, 5)
	require.Error(t, err)
	b.exec(`ALTER TABLE away RENAME TO audit_log`)
	_, err = kept.Count(t.Context(), query.Organizations("C"), past, 5)
	require.NoError(t, err)
	invalid, ok := errors.AsType[*query.InvalidError](func() error { _, err := kept.Count(t.Context(), query.Everything(), past, 0); return err }())
	require.True(t, ok)
	require.Equal(t, "most", invalid.Parameter)
}
