package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/migrations"
	"auditsink/partitions"
)

func newMigrateCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Create or update the database schema, or convert the replaced system's",
		RunE:  needsSubcommand,
	}
	asJSON := false
	up := &cobra.Command{
		Use:   "up",
		Short: "Bring the schema up to date, and create the current and the coming table partitions",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Postgres)
			if err != nil {
				return err
			}
			applied, created, other, err := migrate(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if other != "" {
				fmt.Fprintln(out, other) //nolint:errcheck // the last line below tells
			}
			for _, m := range applied {
				fmt.Fprintf(out, "applied %s\n", m.Name) //nolint:errcheck // the last line below tells
			}
			for _, s := range created {
				fmt.Fprintln(out, s) //nolint:errcheck // the last line below tells
			}
			_, err = fmt.Fprintf(out, "schema version %d, %d migrations applied, %d table partitions created\n", migrations.Version(), len(applied), len(created))
			return err
		},
	}
	status := &cobra.Command{
		Use:   "status",
		Short: "Show which migrations are applied",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Postgres)
			if err != nil {
				return err
			}
			pool, err := openDatabase(cmd.Context(), cfg, maintenanceURL(cfg))
			if err != nil {
				return err
			}
			pool.Close()
			all, err := migrations.Status(cmd.Context(), sslURL(cfg))
			if err != nil {
				return postgres.Explain(err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			return printMigrations(cmd.OutOrStdout(), all)
		},
	}
	status.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(up, status, newConvertCommand(), newIndexesCommand())
	return c
}

// migrate applies the migrations, chooses the indexes (see [chooseIndexes]), and ensures the table partitions.
func migrate(ctx context.Context, cfg config.Config) (applied []migrations.Migration, created []partitions.Step, other string, err error) {
	pool, err := openDatabase(ctx, cfg, maintenanceURL(cfg))
	if err != nil {
		return nil, nil, "", err
	}
	defer pool.Close()
	if applied, err = migrations.Apply(ctx, sslURL(cfg)); err != nil {
		return nil, nil, "", postgres.Explain(err)
	}
	if other, err = chooseIndexes(ctx, pool, cfg); err != nil {
		return applied, nil, "", err
	}
	created, err = partitions.Ensure(ctx, pool.Pool, time.Now(), schedule(cfg))
	if err != nil {
		return applied, created, other, fmt.Errorf("ensure the table partitions: %w", postgres.Explain(err))
	}
	return applied, created, other, nil
}

// sslURL is the maintenance URL with the sslmode of the settings.
func sslURL(cfg config.Config) string {
	return postgres.WithSSLMode(maintenanceURL(cfg).Reveal(), cfg.PostgresSSLMode)
}

func printMigrations(out io.Writer, all []migrations.Migration) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VERSION\tNAME\tAPPLIED") //nolint:errcheck // Flush tells
	for _, m := range all {
		at, name := "pending", m.Name
		if !m.AppliedAt.IsZero() {
			at = m.AppliedAt.UTC().Format(time.RFC3339)
		}
		if name == "" {
			name = "(of a newer auditsink)"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\n", m.Version, name, at) //nolint:errcheck // Flush tells
	}
	return w.Flush()
}
