package convert

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
	"auditsink/migrations"
)

func TestConvert(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		before := content(t, conn, "audit_log")
		s, err := Run(t.Context(), options(db))
		require.NoError(t, err)
		require.EqualValues(t, len(before), s.Rows)
		require.Equal(t, before, content(t, conn, "audit_log"))
		require.NoError(t, migrations.Check(t.Context(), conn))
		requireFresh(t, conn)
	})
}

// requireFresh requires the schema that `migrate up` makes, with the same partitions, and nothing else.
func requireFresh(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	version := collect[int](t, conn, `SELECT current_setting('server_version_num')::int / 10000`)[0]
	url := testkit.Postgres(t, version)
	_, err := migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	fresh := connect(t, url)
	for _, sql := range collect[string](t, conn, `SELECT format('SELECT create_audit_log_partition(%L, %L, %L)', partition_name, lower_bound, upper_bound) FROM audit_log_partition_bounds()`) {
		exec(t, fresh, sql)
	}
	require.Equal(t, schema(t, fresh), schema(t, conn))
}
