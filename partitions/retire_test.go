package partitions

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// lead makes a holder the leader, as a new term.
func lead(t *testing.T, db *pgxpool.Pool, holder string) Term {
	t.Helper()
	return Term{Number: column[int64](t, db, `UPDATE audit_leader SET holder = $1, term = term + 1 RETURNING term`, holder)[0], Holder: holder}
}

// month makes a month's partition.
func month(t *testing.T, db *pgxpool.Pool, start string) Bounds {
	t.Helper()
	from := at(start)
	b := Bounds{Name: from.Format("audit_log_2006_01"), From: from, To: from.AddDate(0, 1, 0)}
	exec(t, db, `SELECT create_audit_log_partition($1, $2, $3)`, b.Name, b.From, b.To)
	return b
}

// event stores a row with a policy; "" is none.
func row(t *testing.T, db *pgxpool.Pool, timestamp, policy string) {
	t.Helper()
	exec(t, db, `INSERT INTO audit_log (timestamp, action, status, retention_policy) VALUES ($1, 'a', 'success', nullif($2, ''))`, at(timestamp), policy)
}

func states(t *testing.T, db *pgxpool.Pool, name string) []string {
	t.Helper()
	return column[string](t, db, `SELECT kind || ' ' || state || ' ' || coalesce(row_count, -1) FROM audit_partition_event WHERE partition_name = $1 AND kind <> 'create' ORDER BY id`, name)
}

var enforced = Retention{Enforce: true, MinDays: 30, Grace: 7 * 24 * time.Hour}

func TestRetire(t *testing.T) {
	versions(t, func(t *testing.T, url string) {
		for _, mode := range []string{"cache_statement", "exec"} {
			db := open(t, url, "default_query_exec_mode", mode, "timezone", "Asia/Kolkata", "default_transaction_isolation", "serializable")
			exec(t, db, `DELETE FROM audit_partition_event`)
			term := lead(t, db, "me")
			january, february := month(t, db, "2015-01-01"), month(t, db, "2015-02-01")
			row(t, db, "2015-01-10", "minimal")
			row(t, db, "2015-01-11", "90")
			row(t, db, "2015-02-11", "standard")

			now := at("2015-05-02").Add(-time.Microsecond)
			done, err := Retire(t.Context(), db, term, now, enforced)
			require.NoError(t, err)
			require.Empty(t, done)
			now = at("2015-05-02")
			done, err = Retire(t.Context(), db, term, now, Retention{MinDays: 30})
			require.NoError(t, err)
			require.Empty(t, done, "nothing is removed where it isn't enforced")

			done, err = Retire(t.Context(), db, term, now, enforced)
			require.NoError(t, err)
			why := "expired on 2015-05-02T00:00:00Z, after 90 days by policy 90"
			require.Equal(t, []Action{{january.Name, "verified", 2, why}, {january.Name, "detached", 2, why}}, done)
			require.Equal(t, []string{"drop detached 2", "detach done 2"}, states(t, db, january.Name))
			fates, err := Outlook(t.Context(), db, now, enforced)
			require.NoError(t, err)
			require.Equal(t, []Fate{
				{Bounds: january, Due: now, Policy: "90", Days: 90, State: Detached, DropAfter: now.AddDate(0, 0, 7), Why: why + "; dropped after 2015-05-09T00:00:00Z"},
				{Bounds: february, Due: february.To.AddDate(0, 0, 2555), Policy: "standard", Days: 2555, State: Attached, Why: "kept until 2022-02-27T00:00:00Z, for 2555 days by policy standard"},
			}, fates)

			for _, early := range []time.Time{now, now.AddDate(0, 0, 7).Add(-time.Microsecond)} {
				done, err = Retire(t.Context(), db, term, early, enforced)
				require.NoError(t, err)
				require.Empty(t, done)
			}
			now = now.AddDate(0, 0, 7)
			done, err = Retire(t.Context(), db, term, now, Retention{MinDays: 30})
			require.NoError(t, err)
			require.Empty(t, done)
			done, err = Retire(t.Context(), db, term, now, enforced)
			require.NoError(t, err)
			require.Equal(t, []Action{{january.Name, "dropped", 2, why}}, done)
			require.Equal(t, []string{"drop done 2", "detach done 2"}, states(t, db, january.Name))
			require.Equal(t, []int64{1}, column[int64](t, db, `SELECT count(*) FROM audit_log`))
			require.Empty(t, column[string](t, db, `SELECT relname::text FROM pg_class WHERE relname = $1`, january.Name))
			require.Equal(t, []int64{term.Number}, column[int64](t, db, `SELECT DISTINCT term FROM audit_partition_event WHERE kind = 'drop'`))
			exec(t, db, `DROP TABLE audit_log_2015_02`)
		}
	})
}
