// Package indexes says which indexes audit_log has by its profile, reads which profile a database has, and changes it.
//
// A profile is what a partition has in the end. When it has that is the build: with immediate, from the first row on, by indexes of the parent; with deferred the parent has only the
// primary key and a BRIN on timestamp, and the leader builds the rest on each partition once its interval has ended.
package indexes

import (
	"fmt"
	"slices"
	"strings"
)

// Profile is a set of indexes.
type Profile string

// Build is when a partition gets them.
type Build string

// The profiles and builds there are.
const (
	Full Profile = "full" // the replaced system's, each column by itself and its pairs
	Lean Profile = "lean" // the few that serve every filter within a bound, for rate

	Immediate Build = "immediate"
	Deferred  Build = "deferred"
)

// Choice is what a database was told to have.
type Choice struct {
	Profile Profile `json:"profile"`
	Build   Build   `json:"build"`
}

// String names both.
func (c Choice) String() string { return fmt.Sprintf("%s, %s", c.Profile, c.Build) }

// Valid returns an error where there is no such profile or build.
func (c Choice) Valid() error {
	if c.Profile != Full && c.Profile != Lean {
		return fmt.Errorf("there is no profile %q of indexes: full or lean", c.Profile)
	}
	if c.Build != Immediate && c.Build != Deferred {
		return fmt.Errorf("there is no way %q to build indexes: immediate or deferred", c.Build)
	}
	return nil
}

// Index is one of audit_log or of a partition, in the words of pg_get_indexdef, so that what a database has is recognized by its definition.
type Index struct {
	X     string // what its name has between the table's and _idx
	Using string // the access method, with the columns
	With  string // storage parameters, none where empty
	Where string // of a partial index, none where empty
}

// Name is the index's name on a table.
func (i Index) Name(table string) string { return table + "_" + i.X + "_idx" }

// inherited is the name of audit_log's index on a partition that has one of its own as well, for as long as it has both.
func (i Index) inherited(table string) string { return table + "_" + i.X + "_inherited_idx" }

// copied is the name that Postgres gives to the copy of a B-tree on a new table (CREATE TABLE LIKE), of 63 bytes at most, with the longer part cut (makeObjectName in PostgreSQL's
// src/backend/commands/indexcmds.c). Before migration 6 partitions kept it.
func (i Index) copied(table string) string {
	_, columns, _ := strings.Cut(strings.TrimSuffix(i.Using, ")"), " (")
	columns = strings.ReplaceAll(strings.ReplaceAll(columns, `"`, ""), ", ", "_")
	for len(table)+len(columns) > 63-len("__idx") {
		if len(table) > len(columns) {
			table = table[:len(table)-1]
		} else {
			columns = columns[:len(columns)-1]
		}
	}
	return table + "_" + columns + "_idx"
}

// definition is what follows the name of the table in CREATE INDEX.
func (i Index) definition() string {
	sql := "USING " + i.Using
	if i.With != "" {
		sql += " WITH (" + i.With + ")"
	}
	if i.Where != "" {
		sql += " WHERE " + i.Where
	}
	return sql
}

// hot is what the parent has with deferred builds, beside the primary key: it costs next to nothing, and keeps a look at some minutes of the newest partition short.
var hot = Index{X: "timestamp_brin", Using: `brin ("timestamp")`, With: "pages_per_range='32'"}

// full has the FIXED names of the design.
var full = plain("timestamp", "principal_id", "organization_id", "action", "status", "hash", "target_resource_type", "target_resource_id", "correlation_id", "data_classification",
	"retention_policy", "archived_at", "timestamp_status:timestamp, status", "principal_action:principal_id, action", "classification_retention:data_classification, retention_policy",
	"resource_type_id:target_resource_type, target_resource_id")

// lean is for rate: B-trees whose new entries come at their end, or at the end of a value's, and a BRIN of bloom filters (PostgreSQL, Built-in BRIN operator classes) for what else is
// filtered by. A rare value is found by reading the filters, about 1 % of the table's size, and the pages that they name; a frequent one by time.
// Without the index on retention_policy, retention would have to read whole partitions.
var lean = append(plain("timestamp", "organization_timestamp:organization_id, timestamp", "principal_timestamp:principal_id, timestamp", "retention_policy"),
	Index{X: "archived", Using: "btree (archived_at)", Where: "(archived_at IS NOT NULL)"},
	Index{X: "bloom", Using: "brin (" + strings.Join([]string{
		bloom("correlation_id", 1000), bloom("target_resource_id", 1000), bloom("hash", 1000),
		bloom("action", 64), bloom("status", 16), bloom("target_resource_type", 64), bloom("data_classification", 16),
	}, ", ") + ")", With: "pages_per_range='32'"},
)

// every lists what a profile or a build may have.
var every = func() []Index {
	all := []Index{hot}
	for _, i := range slices.Concat(full, lean) {
		if !slices.Contains(all, i) {
			all = append(all, i)
		}
	}
	return all
}()

// bloom is a column of a BRIN whose filter is for so many different values in a range of pages, of which 32 hold some 800 rows.
func bloom(column string, values int) string {
	return fmt.Sprintf("%s text_bloom_ops (n_distinct_per_range='%d')", column, values)
}

// plain are B-trees on the column that they are named after, or after the colon.
func plain(names ...string) []Index {
	all := make([]Index, len(names))
	for n, name := range names {
		x, columns, other := strings.Cut(name, ":")
		if !other {
			columns = x
		}
		columns = strings.ReplaceAll(columns, "timestamp", `"timestamp"`) // a keyword
		all[n] = Index{X: x, Using: "btree (" + columns + ")"}
	}
	return all
}

// Parent lists the indexes that audit_log itself has, beside the primary key, and so each partition from its first row on.
func (c Choice) Parent() []Index {
	if c.Build == Deferred {
		return []Index{hot}
	}
	return c.profile()
}

// Later lists the indexes that a partition gets after its interval has ended, none with immediate builds.
func (c Choice) Later() []Index {
	if c.Build == Deferred {
		return c.profile()
	}
	return nil
}

func (c Choice) profile() []Index {
	if c.Profile == Lean {
		return lean
	}
	return full
}
