package partitions

import (
	"context"
	"net/http/httptest"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
)

func openMigrated(t *testing.T, db string) *pgxpool.Pool {
	t.Helper()
	_, err := migrations.Apply(t.Context(), db)
	require.NoError(t, err)
	return open(t, db)
}

func dial(t *testing.T, db string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) })
	return conn
}

func TestInspect(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "timezone", "Asia/Kolkata", "datestyle", "SQL, DMY")
		_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 1})
		require.NoError(t, err)
		exec(t, pool, `
			SELECT create_audit_log_partition('oldest', NULL, '2020-01-01 00:00+00');
			SELECT create_audit_log_partition('audit_log_2026_11', '2026-11-01 00:00+00', '2026-12-01 00:00+00');
			SELECT create_audit_log_partition('audit_log_2026_10', '2026-10-01 00:00+00', '2026-11-01 00:00+00');
			CREATE TABLE rest PARTITION OF audit_log DEFAULT;
			CREATE TABLE audit_log_2019 ()`)
		insert(t, pool, "2026-11-30T23:59:59.999999Z")
		insert(t, pool, "2026-11-02")
		exec(t, pool, `ANALYZE audit_log_2026_11; ALTER TABLE audit_log DETACH PARTITION audit_log_2026_10;
			INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, state, requested_by, updated_at) VALUES
				('audit_log_2026_10', 'drop', '2026-10-01 00:00+00', '2026-11-01 00:00+00', 'detached', 'ann', '2026-12-05 00:00+00'),
				('oldest', 'drop', NULL, '2020-01-01 00:00+00', 'requested', 'bob', '2026-12-06 00:00+00'),
				('audit_log_2026_10', 'drop', NULL, NULL, 'restored', 'ann', '2026-12-05 00:00+00'),
				('audit_log_2026_11', 'vacuum', NULL, NULL, 'done', 'ann', '2026-12-07 00:00+00');
			UPDATE audit_leader SET term = 3, holder = 'a/1', acquired_at = '2026-12-01 00:00+00', renewed_at = now() - interval '2 hours', expires_at = now() - interval '1 hour'`)
		s, err := Inspect(t.Context(), pool, now, enforced)
		require.NoError(t, err)
		require.Equal(t, now, s.Now)
		require.Equal(t, now, s.StatsAt)
		require.Len(t, s.Catalog.Partitions, 5)
		require.Equal(t, []string{"audit_log_2019"}, s.Catalog.Others)
		require.Equal(t, []WayOut{
			{Name: "audit_log_2026_10", State: "detached", By: "ann", Since: at("2026-12-05")},
			{Name: "oldest", State: "requested", By: "bob", Since: at("2026-12-06")},
		}, s.WaysOut)
		require.Equal(t, int64(3), s.Leader.Term)
		require.Equal(t, at("2026-12-01"), s.Leader.Since)
		require.InDelta(t, 3600, s.Leader.Expired, 60)

		var phases []string
		for _, p := range s.Stats {
			phases = append(phases, p.Name+" "+string(p.Phase))
			require.Positive(t, p.TableBytes, p.Name)
			require.Positive(t, p.IndexBytes, p.Name)
			require.Equal(t, p.TotalBytes, p.TableBytes+p.IndexBytes)
		}
		// By our clock: the database's is in another month.
		require.Equal(t, []string{"oldest past", "rest default", "audit_log_2026_10 detached", "audit_log_2026_11 past", "audit_log_2026_12 hot", "audit_log_2027_01 future"}, phases)
		november := s.Stats[3]
		require.Equal(t, Bounds{Name: "audit_log_2026_11", From: at("2026-11-01"), To: at("2026-12-01")}, november.Bounds)
		require.EqualValues(t, 2, *november.Rows)
		require.Equal(t, at("2026-11-02"), november.Oldest)
		require.Equal(t, at("2026-11-30T23:59:59.999999Z"), november.Newest)
		require.False(t, november.LastAnalyzed.IsZero())
		require.Equal(t, at("2026-12-07"), november.FrozenAt)
		require.Nil(t, s.Stats[0].Rows)
		require.Zero(t, s.Stats[0].Oldest)
		require.Equal(t, Totals{Partitions: 5, Detached: 1, Rows: 2, TableBytes: s.Totals().TableBytes, IndexBytes: s.Totals().IndexBytes, TotalBytes: s.Totals().TotalBytes}, s.Totals())

		// What is to become of each, by its name.
		require.Equal(t, "standard", november.Fate.Policy)
		require.Equal(t, november.To.AddDate(0, 0, 2555), november.Fate.Due)
		for _, p := range s.Stats {
			require.Equal(t, p.Name, p.Fate.Name)
		}
		require.Equal(t, "oldest", s.NextDrop().Name)
		require.Empty(t, s.Problem)

		// A standby can be asked too.
		_, err = Inspect(t.Context(), open(t, db, "default_transaction_read_only", "on"), now, enforced)
		require.NoError(t, err)
	})
}

// Somebody's lock on a partition holds up the look at everything for moments only, and the look at the catalog not at all.
func TestInspectDoesNotWait(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 1})
		require.NoError(t, err)
		exec(t, begin(t, pool), `LOCK TABLE audit_log_2027_01 IN ACCESS EXCLUSIVE MODE`)
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		_, err = Inspect(ctx, pool, now, enforced)
		require.ErrorContains(t, err, "55P03")
		m := metrics.New("v1", []time.Duration{})
		require.ErrorContains(t, NewWatch(pool, m, Schedule{Ahead: 6}, enforced).PublishStatistics(ctx, now), "55P03")
		require.EqualValues(t, 1, gauge(t, m, "partitions_ahead"), "whatever the sizes are, what the alert judges is told")
	})
}

func gauge(t *testing.T, m *metrics.Metrics, series string) float64 {
	t.Helper()
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	found := regexp.MustCompile(`(?m)^auditsink_` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(rec.Body.String())
	require.NotNil(t, found, series)
	value, err := strconv.ParseFloat(found[1], 64)
	require.NoError(t, err)
	return value
}

func TestWatch(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
		require.NoError(t, err)
		m := metrics.New("v1", []time.Duration{})
		w := NewWatch(pool, m, Schedule{Ahead: 6}, Retention{MinDays: 30})
		rules, err := metrics.ParseRules([]byte("partitions_future: {for: 0s}"), metrics.Rules())
		require.NoError(t, err)
		alerts := metrics.NewAlerts(m, rules)
		alert := func() float64 {
			sample, err := m.Sample(now)
			require.NoError(t, err)
			alerts.Judge(sample)
			return gauge(t, m, `alert_active{alert="partitions_future"}`)
		}
		require.NoError(t, w.Publish(t.Context(), now))
		require.Zero(t, alert())
		require.EqualValues(t, 7, gauge(t, m, "table_partitions"))
		require.EqualValues(t, at("2027-07-01").Unix(), gauge(t, m, "partitions_ready_until_timestamp_seconds"))
		require.Zero(t, gauge(t, m, "table_bytes"), "only the leader looks at sizes")
		health := m.Health()
		require.Equal(t, metrics.Healthy, health.Status, health.Recommendations)
		require.Equal(t, "2027-07-01T00:00:00Z", health.Components["partitions"].Details["ready_until"])

		require.NoError(t, w.PublishStatistics(t.Context(), now))
		size := column[int64](t, pool, `SELECT sum(pg_total_relation_size(inhrelid))::bigint FROM pg_inherits WHERE inhparent = 'audit_log'::regclass`)[0]
		require.EqualValues(t, size, gauge(t, m, "table_bytes")+gauge(t, m, "index_bytes"))
		require.Contains(t, m.Health().Components["partitions"].Details, "totals")
		// Sizes are looked at again some minutes later; until then a look at the catalog alone leaves them as they are.
		fill(t, pool, "2026-12-05", 1000)
		require.NoError(t, w.PublishStatistics(t.Context(), now.Add(statsEvery-time.Second)))
		require.NoError(t, w.Publish(t.Context(), now.Add(statsEvery)))
		require.EqualValues(t, size, gauge(t, m, "table_bytes")+gauge(t, m, "index_bytes"))
		require.NoError(t, w.PublishStatistics(t.Context(), now.Add(statsEvery)))
		require.Greater(t, gauge(t, m, "table_bytes")+gauge(t, m, "index_bytes"), float64(size))
		w.StandDown()
		require.Zero(t, gauge(t, m, "table_bytes"))

		// In the current month and two after it: two intervals are left until the current one ends, and until then no alert.
		require.NoError(t, w.Publish(t.Context(), at("2027-04-30T23:59:59Z")))
		require.Zero(t, alert())
		require.Equal(t, metrics.Warning, m.Health().Status)
		require.NoError(t, w.Publish(t.Context(), at("2027-05-01T00:00:01Z")))
		require.EqualValues(t, 1, alert())
		require.Equal(t, metrics.Critical, m.Health().Status)
		require.NoError(t, w.Publish(t.Context(), now))
		require.Zero(t, alert())

		// While the database is away time goes on.
		pool.Close()
		require.Error(t, w.Publish(t.Context(), at("2027-02-01")))
		require.Zero(t, alert())
		require.Equal(t, metrics.Warning, m.Health().Status)
		require.Error(t, w.Publish(t.Context(), at("2027-05-02")))
		require.EqualValues(t, 1, alert())
		require.Equal(t, metrics.Critical, m.Health().Status)
		require.Contains(t, m.Health().Components["partitions"].Details, "error")
	})
}

// A worker that has never seen the database says nothing, rather than something wrong.
func TestWatchBeforeTheFirstLook(t *testing.T) {
	pool := open(t, testkit.Postgres(t, 15))
	m := metrics.New("v1", []time.Duration{})
	require.Error(t, NewWatch(pool, m, Schedule{Ahead: 6}, Retention{MinDays: 30}).Publish(t.Context(), now))
	sample, err := m.Sample(now)
	require.NoError(t, err)
	metrics.NewAlerts(m, metrics.Rules()).Judge(sample)
	require.Zero(t, gauge(t, m, `alert_active{alert="partitions_future"}`))
	require.Empty(t, m.Health().Components)
}

// TestMaintained: what tells that maintenance is stale is a round on record, by the database's clock, seen by every worker.
func TestMaintained(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		m := metrics.New("v1", []time.Duration{})
		started := time.Now()
		w := NewWatch(pool, m, Schedule{Ahead: 1}, Retention{MinDays: 30})
		age := func() float64 {
			require.NoError(t, w.Publish(t.Context(), time.Now()))
			return float64(time.Now().UnixMilli())/1e3 - gauge(t, m, "maintenance_last_success_timestamp_seconds")
		}
		const soon = 60 // seconds: far more than it takes
		require.InDelta(t, float64(started.Unix()), gauge(t, m, "maintenance_last_success_timestamp_seconds"), soon)
		w.roundSeen = time.Now().Add(-time.Hour)
		require.InDelta(t, 3600, age(), soon, "never maintained: since this worker began")

		require.NoError(t, (&replica{}).lease(calm).Seize(t.Context(), pool, func(ctx context.Context, term Term) error {
			require.NoError(t, term.Maintained(ctx, pool))
			require.Less(t, age(), float64(soon))
			require.ErrorIs(t, Term{Number: term.Number - 1, Holder: term.Holder}.Maintained(ctx, pool), ErrDeposed)
			require.ErrorIs(t, Term{Number: term.Number, Holder: "another"}.Maintained(ctx, pool), ErrDeposed)
			return nil
		}))
		require.Less(t, age(), float64(soon), "nor does it matter who leads now")
		exec(t, pool, `UPDATE audit_leader SET maintained_at = clock_timestamp() - interval '2 hours'`)
		require.InDelta(t, 7200, age(), soon)

		// The database's clock was set back by two hours.
		exec(t, pool, `UPDATE audit_leader SET maintained_at = clock_timestamp() + interval '2 hours'`)
		require.Less(t, age(), float64(soon))
		w.roundSeen = w.roundSeen.Add(-90 * time.Minute)
		require.InDelta(t, 5400, age(), soon, "it is no younger than we have seen it unchanged")

		// While the database is away it becomes older.
		at := gauge(t, m, "maintenance_last_success_timestamp_seconds")
		pool.Close()
		require.Error(t, w.Publish(t.Context(), time.Now().Add(time.Hour)))
		require.InDelta(t, at, gauge(t, m, "maintenance_last_success_timestamp_seconds"), 0)
	})
}
