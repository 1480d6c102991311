package indexes

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/migrations"
)

// versions runs a test on the oldest and the newest Postgres that are supported, with our schema.
func versions(t *testing.T, test func(t *testing.T, db string)) {
	t.Helper()
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			db := testkit.Postgres(t, version)
			_, err := migrations.Apply(t.Context(), db)
			require.NoError(t, err)
			test(t, db)
		})
	}
}

// month is the start of a partition that [partition] makes.
var month = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// partition makes the partition of a month after 2026-03 and returns its name.
func partition(t *testing.T, conn *pgx.Conn, after int) string {
	t.Helper()
	from := month.AddDate(0, after, 0)
	name := from.Format("audit_log_2006_01")
	testkit.Exec(t, conn, `SELECT create_audit_log_partition($1, $2, $3)`, name, from, from.AddDate(0, 1, 0))
	return name
}

var choices = []Choice{{Full, Immediate}, {Lean, Immediate}, {Full, Deferred}, {Lean, Deferred}}
