package partitions

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
)

// Whoever keeps readers out of a partition for as long as he likes holds up neither the leader nor the other partitions.
func TestAPartitionLockedAgainstReaders(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		january, february := month(t, db, "2015-01-01"), month(t, db, "2015-02-01")
		march := month(t, db, "2015-03-01")
		for _, b := range []Bounds{january, february, march} {
			row(t, db, b.From.Format(time.DateOnly), "90")
		}
		row(t, db, "2015-03-20", "standard")
		term, now := lead(t, db, "me"), at("2015-08-01")
		tx := begin(t, db)
		exec(t, tx, `LOCK TABLE audit_log_2015_01 IN ACCESS EXCLUSIVE MODE`)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // what waits without end fails
		defer cancel()

		fates, err := Outlook(ctx, db, now, enforced)
		require.ErrorContains(t, err, "audit_log_2015_01")
		require.Len(t, fates, 2, "the others are told")
		done, err := Retire(ctx, db, term, now, enforced)
		require.NoError(t, err)
		require.Equal(t, []string{"2015_01 waits", "2015_02 verified", "2015_02 detached"}, what(done))
		done, err = Expire(ctx, db, term, now, enforced)
		require.NoError(t, err)
		require.Equal(t, []string{"2015_01 waits", "2015_03 expired"}, what(done))

		require.NoError(t, tx.Rollback(ctx))
		require.Equal(t, []string{"2015_01 verified", "2015_01 detached"}, retire(t, db, term, now))
	})
}

// Whether a hold covers a partition is told by an index, also where the planner thinks that the organization has many rows there, and it has none.
func TestHoldsAreFoundByIndex(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		b := month(t, db, "2015-01-01")
		exec(t, db, `INSERT INTO audit_log (timestamp, action, status, organization_id, correlation_id)
			SELECT '2015-01-01 00:00+00'::timestamptz + make_interval(secs => n), 'a', 'success', 'org' || n % 5, 'c' || n % 5 FROM generate_series(1, 20000) n`)
		exec(t, db, `ANALYZE audit_log_2015_01`)
		none, some := "none", "org1"
		for _, h := range []Hold{
			{Organization: &none},
			{Organization: &none, From: at("2015-01-02")},
			{Correlation: &none},
			{Correlation: &none, Organization: &some},
			{Organization: &some, Until: at("2014-01-02")},
			{Organization: &some, Until: at("2015-01-01")},
		} {
			h.Reason = "r"
			_, err := PlaceHold(t.Context(), db, h, "me")
			require.NoError(t, err)
		}
		holding, err := PlaceHold(t.Context(), db, Hold{Organization: &some, From: at("2015-01-01T05:00:00Z"), Reason: "r"}, "me")
		require.NoError(t, err)
		w, err := lookAt(t.Context(), db, b.Name)
		require.NoError(t, err)
		session := dial(t, url) // whose statistics have nothing else
		exec(t, session, `BEGIN`)
		holds, err := holdsOn(t.Context(), session, w)
		require.NoError(t, err)
		require.Equal(t, []int64{holding.ID}, holds)
		require.Zero(t, column[int64](t, session, `SELECT pg_stat_get_xact_numscans('audit_log_2015_01'::regclass)`)[0], "sequential scans")
	})
}

// A lane that a partition was just made for tells the watch, and doesn't wait for the leader's long look.
func TestTheLeadersLookHoldsUpNoLane(t *testing.T) {
	url := testkit.Postgres(t, 18)
	_, err := migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	db := open(t, url, "pool_max_conns", "5")
	month(t, db, "2015-01-01")
	watch := NewWatch(db, metrics.New("v1", []time.Duration{}), Schedule{}, enforced)
	tx := begin(t, db)
	exec(t, tx, `LOCK TABLE audit_log_2015_01 IN ACCESS EXCLUSIVE MODE`)
	looked := make(chan error, 1)
	go func() { looked <- watch.PublishStatistics(t.Context(), at("2015-01-02")) }()
	require.Eventually(t, func() bool {
		return column[bool](t, db, `SELECT count(*) > 0 FROM pg_locks WHERE relation = 'audit_log_2015_01'::regclass AND NOT granted`)[0]
	}, time.Minute, time.Millisecond)
	require.NoError(t, watch.Publish(t.Context(), at("2015-01-02")))
	require.Empty(t, looked, "it came first")
	require.Error(t, <-looked)
}

// A detach isn't begun beside a long transaction of another role either, whose age only who may read all statistics can see: begun, it would be interrupted,
// and until that transaction ends its range would take no late event.
func TestDetachBesideAnotherRole(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2015-01-01")
		row(t, db, "2015-01-10", "minimal")
		role := "keeper_" + column[string](t, db, `SELECT current_database()`)[0]
		exec(t, db, `CREATE ROLE "`+role+`"; GRANT ALL ON SCHEMA public TO "`+role+`"; GRANT ALL ON ALL TABLES IN SCHEMA public TO "`+role+`";
			GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "`+role+`"; ALTER TABLE audit_log OWNER TO "`+role+`"; ALTER TABLE audit_log_2015_01 OWNER TO "`+role+`"`)
		t.Cleanup(func() {
			_, err := db.Exec(context.WithoutCancel(t.Context()), `REASSIGN OWNED BY "`+role+`" TO CURRENT_USER; DROP OWNED BY "`+role+`"; DROP ROLE "`+role+`"`)
			require.NoError(t, err)
		})
		keeper := open(t, url, "role", role)
		term, now := lead(t, db, "me"), at("2015-08-01")
		reader := begin(t, db)
		require.Equal(t, []int64{1}, column[int64](t, reader, `SELECT count(*) FROM audit_log`))
		done, err := Retire(t.Context(), keeper, term, now, enforced)
		require.NoError(t, err)
		require.Equal(t, []string{"2015_01 verified", "2015_01 waits"}, what(done))
		require.Contains(t, done[1].Why, "pg_read_all_stats")
		require.Equal(t, []bool{false}, column[bool](t, db, `SELECT is_detaching FROM audit_log_partition_bounds()`))

		require.NoError(t, reader.Rollback(t.Context()))
		require.Equal(t, []string{"2015_01 detached"}, retire(t, keeper, term, now))
	})
}
