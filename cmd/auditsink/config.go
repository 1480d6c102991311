package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/kafka"
)

func newConfigCommand() *cobra.Command {
	asJSON := false
	check := &cobra.Command{
		Use:   "check",
		Short: "Check the settings of the environment and print them, secrets hidden",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, stranger := range config.Strangers() {
				cmd.PrintErrln("note:", stranger)
			}
			return checkConfig(cmd.OutOrStdout(), asJSON)
		},
	}
	check.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check the settings, or list those there are",
		RunE:  needsSubcommand,
	}
	cmd.AddCommand(
		check,
		&cobra.Command{
			Use:   "reference",
			Short: "Print the table of all settings, in Markdown",
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := io.WriteString(cmd.OutOrStdout(), config.Reference())
				return err
			},
		},
	)
	return cmd
}

// checkConfig loads the settings for all needs and opens the files they name, but connects to nothing.
func checkConfig(out io.Writer, asJSON bool) error {
	cfg, err := config.Load(config.Kafka, config.Topics, config.Postgres)
	if err != nil {
		return err
	}
	if _, err := kafka.Options(cfg, zap.NewNop()); err != nil {
		return err
	}
	if _, err := openTokens(cfg, zap.NewNop()); err != nil {
		return err
	}
	if _, err := alertRules(cfg); err != nil {
		return err
	}
	if asJSON {
		values := map[string]string{}
		for _, s := range cfg.Settings() {
			values[s.Variable] = s.Value
		}
		return printJSON(out, values)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, s := range cfg.Settings() {
		_, werr := fmt.Fprintf(table, "%s\t%s\n", s.Variable, s.Value)
		err = errors.Join(err, werr)
	}
	return errors.Join(err, table.Flush())
}
