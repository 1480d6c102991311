package indexes

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Lacking is [Missing] for all partitions of audit_log that are plain tables of its schema, by name. Those that have everything are left out. It takes no lock on any.
func Lacking(ctx context.Context, db querier, wanted []Index) (map[string][]Index, error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	rows, err := db.Query(ctx, `
		SELECT t.relname::text, coalesce(array_agg(substr(d.text, strpos(d.text, ' USING ') + 1) COLLATE "C") FILTER (WHERE d.text IS NOT NULL), '{}')
		FROM pg_class parent JOIN pg_inherits i ON i.inhparent = parent.oid
		JOIN pg_class t ON t.oid = i.inhrelid AND t.relkind = 'r' AND t.relnamespace = parent.relnamespace
		LEFT JOIN (pg_index x JOIN pg_class c ON c.oid = x.indexrelid AND NOT c.relispartition) ON x.indrelid = t.oid AND x.indisvalid AND NOT x.indisunique
		LEFT JOIN LATERAL pg_get_indexdef(x.indexrelid) d (text) ON true
		WHERE parent.oid = 'audit_log'::regclass GROUP BY t.relname`)
	if err != nil {
		return nil, fmt.Errorf("read the indexes of the partitions: %w", err)
	}
	lacking := map[string][]Index{}
	var table string
	var has []string
	_, err = pgx.ForEachRow(rows, []any{&table, &has}, func() error {
		lacks := slices.DeleteFunc(slices.Clone(wanted), func(i Index) bool { return slices.Contains(has, i.definition()) })
		if len(lacks) > 0 {
			lacking[table] = lacks
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the indexes of the partitions: %w", err)
	}
	return lacking, nil
}
