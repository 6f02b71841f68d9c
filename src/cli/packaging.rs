//! `completions` and `man`: what packages bring beside the program, made from the same definitions as `--help`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;
use roff::Roff;

use super::{Cli, absolute, complete, exit, fail, mount8, say};

/// Print what makes a shell complete the options and names of this program
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lighthouse-fs completions bash > /usr/share/bash-completion/completions/lighthouse-fs
  lighthouse-fs completions zsh > /usr/share/zsh/site-functions/_lighthouse-fs
  lighthouse-fs completions fish > /usr/share/fish/vendor_completions.d/lighthouse-fs.fish
  source <(lighthouse-fs completions bash)

The script calls the program, which it finds in PATH, and so completes the names of mounts too.")]
pub struct Completions {
    /// For which shell
    shell: Shell,
}

/// Write the manual pages into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lighthouse-fs man /usr/share/man
  lighthouse-fs man /tmp/man && man -M /tmp/man lighthouse-fs-serve

A page for each subcommand, in DIR/man1, and DIR/man8/mount.lighthouse-fs.8. Directories are made if they are missing.")]
pub struct Man {
    /// Where to
    #[arg(value_name = "DIR", value_parser = absolute)]
    folder: PathBuf,
}

/// Prints a shell's completions.
pub fn complete(args: &Completions) -> ExitCode {
    match complete::script(args.shell) {
        Ok(script) => say(script),
        Err(error) => fail(exit::FAILED, format_args!("the script cannot be written: {error}")),
    }
}

/// Writes the manual.
pub fn write_pages(args: &Man) -> ExitCode {
    match pages().and_then(|pages| write(&args.folder, &pages)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail(exit::FAILED, format_args!("the pages cannot be written to {}: {error}", args.folder.display()))
        }
    }
}

fn write(folder: &Path, pages: &[Page]) -> io::Result<()> {
    pages.iter().try_for_each(|page| {
        let section = page.name.rsplit('.').next().unwrap_or_default();
        let folder = folder.join(format!("man{section}"));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(&page.name), &page.text)
    })
}

struct Page {
    name: String,
    text: Vec<u8>,
}

fn pages() -> io::Result<Vec<Page>> {
    let mut pages = visible().into_iter().map(page).collect::<io::Result<Vec<_>>>()?;
    pages.push(Page { name: mount8::PAGE_NAME.into(), text: mount8::page().into_bytes() });
    Ok(pages)
}

/// The program and every subcommand that people are shown, however deep, complete with the options of all.
fn visible() -> Vec<clap::Command> {
    fn collect(command: &clap::Command, found: &mut Vec<clap::Command>) {
        found.push(command.clone());
        for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            collect(subcommand, found);
        }
    }
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut found = Vec::new();
    collect(&program, &mut found);
    found
}

fn page(command: clap::Command) -> io::Result<Page> {
    let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_subcommands = command.get_subcommands().any(|subcommand| !subcommand.is_hide_set());
    let man = clap_mangen::Man::new(command);
    let name = man.get_filename();
    let title = name.trim_end_matches(".1").to_uppercase();
    // By hand: the crate leaves an empty date out, and what follows would stand for it.
    let mut text = format!(".TH {title:?} 1 \"\" \"Lighthouse FS {}\" \"User Commands\"\n", env!("CARGO_PKG_VERSION"))
        .into_bytes();
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_subcommands {
        man.render_subcommands_section(&mut text)?;
    }
    sections(&notes).to_writer(&mut text)?;
    Ok(Page { name, text })
}

/// What follows the options in `--help`: paragraphs, of which the one that begins with "Examples:" keeps its lines.
fn sections(notes: &str) -> Roff {
    let mut roff = Roff::new();
    for paragraph in notes.split("\n\n") {
        match paragraph.strip_prefix("Examples:\n") {
            Some(examples) => {
                roff.control("SH", ["EXAMPLES"]).control("EX", []);
                for line in examples.lines() {
                    roff.text([roff::roman(line.trim_start())]);
                }
                roff.control("EE", []);
            }
            None if paragraph.is_empty() => {}
            None => {
                roff.control("PP", []).text([roff::roman(paragraph)]);
            }
        }
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/cli.md");

    fn reference() -> String {
        let mut text = "# The command line\n\nWhat `--help` says, of the program and of each subcommand. Made by \
                        `UPDATE_DOCS=1 cargo test --lib cli`.\n"
            .to_owned();
        for command in visible() {
            let name = command.get_display_name().unwrap_or("lighthouse-fs").to_owned();
            let help = command.term_width(100).render_long_help().to_string();
            // clap leaves blanks at the ends of lines.
            let lines: Vec<_> = help.lines().map(str::trim_end).collect();
            let level = if name == "lighthouse-fs" { "##" } else { "###" };
            text += &format!("\n{level} {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end());
        }
        text
    }

    #[test]
    fn the_reference_in_docs_says_what_help_says() {
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::create_dir_all(Path::new(REFERENCE).parent().unwrap()).unwrap();
            fs::write(REFERENCE, reference()).unwrap();
        }
        let there = fs::read_to_string(REFERENCE).unwrap_or_default();
        assert!(there == reference(), "{REFERENCE} is old: run `UPDATE_DOCS=1 cargo test --lib cli`");
    }

    #[test]
    fn every_help_has_examples() {
        for command in visible() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("\nExamples:\n  lighthouse-fs "), "{}", command.get_name());
        }
    }

    #[test]
    fn every_visible_command_has_a_page_with_its_examples() {
        let pages = pages().unwrap();
        let names: Vec<_> = pages.iter().map(|page| page.name.as_str()).collect();
        for expected in ["lighthouse-fs.1", "lighthouse-fs-serve.1", "lighthouse-fs-man.1", "mount.lighthouse-fs.8"] {
            assert!(names.contains(&expected), "{expected} is missing in {names:?}");
        }
        assert!(!names.contains(&"lighthouse-fs-server.1"), "it is hidden");
        for page in &pages {
            let text = std::str::from_utf8(&page.text).unwrap();
            assert!(text.contains(".SH EXAMPLES\n") && !text.contains("Examples:"), "{}", page.name);
        }
    }
}
